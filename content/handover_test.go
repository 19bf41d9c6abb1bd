package content

import (
	"testing"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestHandOver transfers unfinished ingests to another containerd, which resumes them. An ingest
// whose writer is open stays, and an ingest that the receiver already has under the same ref is
// kept.
func TestHandOver(t *testing.T) {
	from, to := metadata.ContainerdHolder("d1"), metadata.Containerd
	r := open(t, t.TempDir(), nil)
	write := func(h metadata.Holder, ref, data string) content.Writer {
		t.Helper()
		w, err := r.For(h).Writer(t.Context(), content.WithRef(ref))
		must(t, err)
		_, err = w.Write([]byte(data))
		must(t, err)
		return w
	}
	must(t, write(from, "idle", "12345").Close())
	must(t, write(from, "both", "12345").Close())
	must(t, write(to, "both", "123").Close())
	must(t, write(alice, "other", "1").Close())
	busy := write(from, "busy", "12")
	must(t, r.HandOver(from, to))
	for _, tc := range []struct {
		h    metadata.Holder
		want map[string]int64
	}{
		{from, map[string]int64{"busy": 2}},
		{to, map[string]int64{"idle": 5, "both": 3}},
		{alice, map[string]int64{"other": 1}},
	} {
		sts, err := r.For(tc.h).ListStatuses(t.Context())
		must(t, err)
		if len(sts) != len(tc.want) {
			t.Errorf("%s has %v", tc.h, sts)
		}
		for _, st := range sts {
			if tc.want[st.Ref] != st.Offset {
				t.Errorf("%s: %s at %d, want %d", tc.h, st.Ref, st.Offset, tc.want[st.Ref])
			}
		}
	}
	must(t, busy.Close())
	w, err := r.For(to).Writer(t.Context(), content.WithRef("idle"))
	must(t, err)
	if st, err := w.Status(); err != nil || st.Offset != 5 {
		t.Errorf("resumed at %d: %v", st.Offset, err)
	}
	must(t, w.Close())
	if _, err := r.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
}
