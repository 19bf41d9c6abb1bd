package exactjson

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode"

	"github.com/containerd/errdefs"
)

// shape describes a Go type for check: the fields of a struct and the types of elements. A nil shape is valid. It
// describes a value in which any name is allowed, such as one with its own decoder.
type shape struct {
	fields map[string]reflect.Type // of a struct, by their names in JSON; nil for other types
	folded map[string]string       // the same names, by fold
	elem   reflect.Type            // of an array, a slice or a map; nil for other types
	keys   bool                    // a map, whose elements are found by key and not by position
}

var (
	shapes sync.Map // reflect.Type to *shape

	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// shapeOf returns the shape of a type, nil if there is nothing to check in it. It describes only one level of
// the type, so it works with recursive types.
func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s := newShape(t)
	shapes.Store(t, s)
	return s
}

func newShape(t reflect.Type) *shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := reflect.PointerTo(t); p.Implements(unmarshaler) || p.Implements(textUnmarshaler) {
		return nil
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return &shape{elem: t.Elem()}
	case reflect.Map:
		return &shape{elem: t.Elem(), keys: true}
	case reflect.Struct:
		s := &shape{fields: map[string]reflect.Type{}, folded: map[string]string{}}
		for _, f := range reflect.VisibleFields(t) {
			if name := jsonName(f); name != "" {
				s.fields[name], s.folded[fold(name)] = f.Type, name
			}
		}
		return s
	}
	return nil
}

// jsonName returns the name by which encoding/json finds a field, "" if it does not decode the field. If two
// fields of embedded structs have the same name, encoding/json may decode neither of them; then the check is
// too strict.
func jsonName(f reflect.StructField) string {
	tag := f.Tag.Get("json")
	name, _, _ := strings.Cut(tag, ",")
	switch {
	case tag == "-" || !f.IsExported() && !f.Anonymous:
		return ""
	case name != "":
		return name
	case f.Anonymous:
		return "" // its fields count as fields of the outer struct
	}
	return f.Name
}

// isStruct reports whether s is the shape of a struct.
func (s *shape) isStruct() bool { return s != nil && s.fields != nil }

// element returns the shape of the elements of an array.
func (s *shape) element() *shape {
	if s == nil || s.elem == nil || s.keys {
		return nil
	}
	return shapeOf(s.elem)
}

// member returns the shape of the value with a name in an object, nil for a name that no field has. It returns
// errdefs.ErrDataLoss for a name that matches a field only if case is ignored.
func (s *shape) member(name string) (*shape, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.keys:
		return shapeOf(s.elem), nil
	}
	if t, ok := s.fields[name]; ok {
		return shapeOf(t), nil
	}
	if right, ok := s.folded[fold(name)]; ok {
		return nil, fmt.Errorf("JSON name %.100q: ambiguous with %q: %w", name, right, errdefs.ErrDataLoss)
	}
	return nil, nil
}

// fold maps all spellings of a name that encoding/json treats as equal to one string. Two names have the same
// result if and only if strings.EqualFold returns true for them.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for { // until the smallest rune that folds like r
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, name)
}
