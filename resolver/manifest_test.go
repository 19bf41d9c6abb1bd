package resolver

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckJSON(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2)
	for _, tc := range []struct {
		in      string
		grammar *grammar
		ok      bool
	}{
		{`{}`, manifestGrammar, true},
		{`{"annotations":{"Layers":"x","layers":"y","SIZE":"z"}}`, manifestGrammar, true},
		{`{"annotations":{"a":"x","a":"y"}}`, manifestGrammar, false},
		{`{"Layers":[]}`, manifestGrammar, false},
		{`{"layers":[{"Digest":"x"}]}`, manifestGrammar, false},
		{`{"layers":[],"layers":[]}`, manifestGrammar, false},
		{`{} {}`, manifestGrammar, false},
		{`{`, manifestGrammar, false},
		{``, manifestGrammar, false},
		{deep, manifestGrammar, false},
		{`{"config":{"Labels":{"OS":"x","os":"y"}},"os":"linux","Size":5}`, configGrammar, true}, // Size: Docker's own
		{`{"RootFS":{}}`, configGrammar, false},
		{`{"rootfs":{"Diff_IDs":[]}}`, configGrammar, false},
	} {
		if err := checkJSON([]byte(tc.in), tc.grammar); (err == nil) != tc.ok || err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", tc.in, err)
		}
	}
}
