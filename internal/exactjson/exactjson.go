// Package exactjson decodes JSON documents that all decoders read in the same way.
//
// encoding/json ignores case when it matches field names, and treats the long s (U+017F) and the Kelvin sign
// (U+212A) as s and k, so it reads "layerſ" as "layers". Most other decoders compare names exactly. A
// document that the two kinds of decoders read differently shows one image to a scanner and another one to a
// runtime.
//
// It owns nothing on disk.
//
// Its invariant: a document that Unmarshal accepts decodes to the same value with encoding/json and with a
// decoder that compares names exactly, whether that decoder uses the first or the last of two equal names.
//
// The surprising rule: names that match no field are accepted in any spelling, because builders add their own fields.
package exactjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/containerd/errdefs"
)

// Limits on a document, which bound the memory that decoding it takes.
const (
	// MaxDepth is the greatest depth of nested values.
	MaxDepth = 64
	// MaxValues is the largest number of values in a document, names included.
	MaxValues = 1 << 18
	// MaxObjects is the largest number of entries in an array that a Go type decodes as objects.
	MaxObjects = 4096
)

// Unmarshal decodes data into the value that into points to, like json.Unmarshal. In these cases it returns
// errdefs.ErrDataLoss and leaves into unchanged: json.Unmarshal fails; an object has a name twice; a name
// matches a field of into only if case is ignored; there are more values than the limits allow; or there are
// bytes after the end.
func Unmarshal(data []byte, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("JSON: decoding into %T: %w", into, errdefs.ErrInvalidArgument)
	}
	if err := check(data, shapeOf(v.Type().Elem())); err != nil {
		return err
	}
	decoded := reflect.New(v.Type().Elem())
	if err := json.Unmarshal(data, decoded.Interface()); err != nil {
		return fmt.Errorf("JSON: %v: %w", err, errdefs.ErrDataLoss)
	}
	v.Elem().Set(decoded.Elem())
	return nil
}

// check reads a document once and compares it with the shape of the Go value for it.
func check(data []byte, s *shape) error {
	w := walker{dec: json.NewDecoder(bytes.NewReader(data))}
	w.dec.UseNumber()
	if err := w.value(s, 0); err != nil {
		if errdefs.IsDataLoss(err) {
			return err
		}
		return fmt.Errorf("not JSON: %v: %w", err, errdefs.ErrDataLoss)
	}
	if _, err := w.dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("bytes after the JSON document: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// walker reads the tokens of one document.
type walker struct {
	dec    *json.Decoder
	values int
}

func (w *walker) token() (json.Token, error) {
	if w.values++; w.values > MaxValues {
		return nil, fmt.Errorf("JSON document of more than %d values: %w", MaxValues, errdefs.ErrDataLoss)
	}
	return w.dec.Token()
}

// value reads one value that will be decoded into a Go value of shape s, or ignored if s is nil.
func (w *walker) value(s *shape, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("JSON nested deeper than %d: %w", MaxDepth, errdefs.ErrDataLoss)
	}
	tok, err := w.token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('['):
		err = w.array(s, depth)
	case json.Delim('{'):
		err = w.object(s, depth)
	default:
		return nil
	}
	if err == nil {
		_, err = w.dec.Token() // the closing bracket
	}
	return err
}

func (w *walker) array(s *shape, depth int) error {
	elem := s.element()
	for n := 1; w.dec.More(); n++ {
		if n > MaxObjects && elem.isStruct() {
			return fmt.Errorf("JSON array of more than %d objects: %w", MaxObjects, errdefs.ErrDataLoss)
		}
		if err := w.value(elem, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) object(s *shape, depth int) error {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, err := w.token()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return fmt.Errorf("JSON name %v: not a string: %w", tok, errdefs.ErrDataLoss)
		}
		if seen[name] {
			return fmt.Errorf("JSON name %.100q twice: %w", name, errdefs.ErrDataLoss)
		}
		seen[name] = true
		member, err := s.member(name)
		if err != nil {
			return err
		}
		if err := w.value(member, depth+1); err != nil {
			return err
		}
	}
	return nil
}
