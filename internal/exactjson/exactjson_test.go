package exactjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sample has one field of each kind that occurs in documents.
type sample struct {
	embedded
	Size   int64             `json:"size"`
	Layers []sample          `json:"layers"`
	Config *sample           `json:"config"`
	Labels map[string]string `json:"labels"`
	Named  map[string]sample `json:"named"`
	Raw    json.RawMessage   `json:"raw"`
	When   time.Time         `json:"when"`
	Any    any               `json:"any"`
	Plain  string
	Hidden string `json:"-"`
}

type embedded struct {
	OS string `json:"os"`
}

func TestUnmarshal(t *testing.T) {
	deep := strings.Repeat(`{"config":`, MaxDepth) + "{}" + strings.Repeat("}", MaxDepth)
	for _, tc := range []struct {
		in string
		ok bool
	}{
		{`{}`, true},
		{`null`, true},
		{` {"size": 1, "layers": [{"size": 2}], "config": {"labels": {}}} `, true},
		{`{"unknown": 1, "Unknown": 2, "x": {"Size": 1, "size": 2}}`, true},
		{`{"labels": {"Size": "a", "size": "b", "\u017fize": "c", "K": "d", "\u212a": "e"}}`, true},
		{`{"raw": {"Size": 1}, "any": [{"Size": 1, "size": 2}]}`, true},
		{`{"Plain": "x", "Hidden": "x", "hidden": "x"}`, true},
		{deep, true},

		{``, false},
		{`{`, false},
		{`{}{}`, false},
		{`{} x`, false},
		{`[]`, false},
		{`{"size": "1"}`, false},
		{`{"size": 1.5}`, false},
		{`{"size": 9223372036854775808}`, false},
		{`{"size": 1, "size": 1}`, false},
		{`{"size": 1, "s\u0069ze": 1}`, false},
		{`{"labels": {"a": "x", "a": "y"}}`, false},
		{`{"any": {"a": 1, "a": 1}}`, false},
		{`{"unknown": {"a": 1, "a": 1}}`, false},
		{`{"Size": 1}`, false},
		{`{"plain": "x"}`, false},
		{`{"OS": "linux"}`, false},
		{`{"o\u017f": "linux"}`, false},
		{`{"oſ": "linux"}`, false},
		{`{"\u017fize": 1}`, false},
		{`{"layer\u017f": []}`, false},
		{`{"layers": [{"config": {"SIZE": 1}}]}`, false},
		{`{"named": {"Free": {"Size": 1}}}`, false},
		{strings.Replace(deep, "{}", `{"config":{}}`, 1), false},
		{strings.Repeat("[", 1<<20), false},
		{`{"layers": [` + strings.Repeat("{},", MaxObjects) + `{}]}`, false},
		{`{"any": [` + strings.Repeat("1,", MaxValues) + `1]}`, false},
	} {
		var v sample
		if err := Unmarshal([]byte(tc.in), &v); (err == nil) != tc.ok || err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("%.80s: %v", tc.in, err)
		} else if err != nil && !reflect.DeepEqual(v, sample{}) {
			t.Errorf("%.80s: refused, but decoded to %+v", tc.in, v)
		}
	}
	if err := Unmarshal([]byte(`{}`), sample{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("into a value: %v", err)
	}
}

// TestLettersThatFold tries, for each letter of each field in the documents of an image, all spellings that
// encoding/json treats as equal.
func TestLettersThatFold(t *testing.T) {
	t.Parallel()
	other := map[rune]string{'s': "S\u017f", 'k': "K\u212a", 'S': "s\u017f", 'K': "k\u212a"}
	for _, doc := range []any{
		new(ocispec.Manifest), new(ocispec.Index), new(ocispec.Image), new(ocispec.Descriptor),
		new(ocispec.ImageConfig),
	} {
		s := shapeOf(reflect.TypeOf(doc).Elem())
		if len(s.fields) < 5 {
			t.Fatalf("%T has the fields %v", doc, s.fields)
		}
		for name := range s.fields {
			for i, r := range name {
				swaps := other[r]
				if swaps == "" {
					swaps = strings.Map(swapCase, string(r))
				}
				for _, swap := range swaps {
					spelling := name[:i] + string(swap) + name[i+1:]
					if err := Unmarshal([]byte(`{"`+spelling+`": null}`), doc); (err == nil) != (spelling == name) {
						t.Errorf("%T: %q: %v", doc, spelling, err)
					}
				}
			}
		}
	}
}

func swapCase(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z':
		return r - 'a' + 'A'
	case r >= 'A' && r <= 'Z':
		return r - 'A' + 'a'
	}
	return r
}

// FuzzUnmarshal compares what is accepted with what a decoder finds that compares names exactly.
func FuzzUnmarshal(f *testing.F) {
	for _, seed := range []string{
		`{"schemaVersion":2,"mediaType":"m","config":{"digest":"d","size":1},"layers":[{"digest":"d"}],
			"annotations":{"a":"b"}}`,
		`{"layers":[],"layer\u017f":[{"size":1}]}`, `{"layers":[{"\u017fize":1,"size":2}]}`, `{"size":1,"size":2}`,
		`{"os":"linux","rootfs":{"type":"layers","diff_ids":["d"]},
			"config":{"Env":["A=b"],"Labels":{"a":"b","A":"c"}},"created":"2020-01-01T00:00:00Z"}`,
		`{"os":"linux","OS":"x"}`,
		`{"named":{"a":{"size":1}},"any":{"Size":[1,{"size":2}]},"raw":[1],"plain":1,"Plain":"x"}`,
		`{"\ud800":1,"\udc00":2}`,
		`[1,]`, `{"config":{"config":{}}}`, `{"labels":{"k":"v","\u212a":"w"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, into := range []any{new(ocispec.Manifest), new(ocispec.Index), new(ocispec.Image), new(sample)} {
			if Unmarshal(data, into) != nil {
				continue
			}
			var tree any
			if err := json.Unmarshal(data, &tree); err != nil {
				t.Fatalf("accepted, but %v", err)
			}
			exactly := reflect.New(reflect.TypeOf(into).Elem())
			exact(t, exactly.Elem(), data)
			if !reflect.DeepEqual(exactly.Interface(), into) {
				t.Fatalf("%s: %+v, read exactly %+v", data, into, exactly.Interface())
			}
		}
	})
}

// exact decodes data into v and matches the names of fields exactly.
func exact(t *testing.T, v reflect.Value, data json.RawMessage) {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if string(data) == "null" || shapeOf(v.Type()) == nil {
		must(json.Unmarshal(data, v.Addr().Interface()))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		exact(t, v.Elem(), data)
	case reflect.Struct:
		var members map[string]json.RawMessage
		must(json.Unmarshal(data, &members))
		for _, f := range reflect.VisibleFields(v.Type()) {
			if m, ok := members[jsonName(f)]; ok && jsonName(f) != "" {
				exact(t, v.FieldByIndex(f.Index), m)
			}
		}
	case reflect.Map:
		var members map[string]json.RawMessage
		must(json.Unmarshal(data, &members))
		v.Set(reflect.MakeMap(v.Type()))
		for name, m := range members {
			elem := reflect.New(v.Type().Elem()).Elem()
			exact(t, elem, m)
			v.SetMapIndex(reflect.ValueOf(name), elem)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			must(json.Unmarshal(data, v.Addr().Interface()))
			return
		}
		var elems []json.RawMessage
		must(json.Unmarshal(data, &elems))
		v.Set(reflect.MakeSlice(v.Type(), len(elems), len(elems)))
		for i, e := range elems {
			exact(t, v.Index(i), e)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	data, err := json.Marshal(ocispec.Manifest{Layers: make([]ocispec.Descriptor, 50)})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var m ocispec.Manifest
		if err := Unmarshal(data, &m); err != nil {
			b.Fatal(err)
		}
	}
}
