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

// shape is what check needs to know about a Go type: the fields of a struct and the types of elements. The
// methods of a nil shape describe a value in which any name is allowed, such as one that decodes itself.
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

// shapeOf describes a type; nil if nothing in it has to be checked. It describes one type at a time, so
// recursive types work too.
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

// jsonName is the name by which encoding/json finds a field, or "" for one that it does not decode. Where two fields
// of embedded structs have one name, encoding/json may decode neither; then the check is stricter than necessary.
func jsonName(f reflect.StructField) string {
	tag := f.Tag.Get("json")
	name, _, _ := strings.Cut(tag, ",")
	switch {
	case tag == "-" || !f.IsExported() && !f.Anonymous:
		return ""
	case name != "":
		return name
	case f.Anonymous:
		return "" // its fields are listed as the outer struct's own
	}
	return f.Name
}

// isStruct reports whether s is the shape of a struct.
func (s *shape) isStruct() bool { return s != nil && s.fields != nil }

// element is the shape of what an array holds.
func (s *shape) element() *shape {
	if s == nil || s.elem == nil || s.keys {
		return nil
	}
	return shapeOf(s.elem)
}

// member is the shape of what an object has under name: nil for a name that no field has. It returns
// errdefs.ErrDataLoss for a name that is a field's only when case is folded.
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

// fold maps all spellings that encoding/json takes for one name to one string: two names fold to the same
// string if and only if strings.EqualFold reports that they are equal.
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
