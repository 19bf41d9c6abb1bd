package plugin

import (
	"bytes"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/protobuf/proto"
)

// TestPieces shows that each piece decodes to its bytes and fits into the receive buffer.
func TestPieces(t *testing.T) {
	for _, left := range []int64{1, 1000, smallMessage - frame, smallMessage, smallMessage + 1, largeMessage - frame,
		largeMessage, 1 << 40} {
		for _, offset := range []int64{0, 1, 1 << 62} {
			p := newPiece(offset, left)
			for i := range *p.data {
				(*p.data)[i] = byte(i)
			}
			want := bytes.Clone(*p.data)
			s, err := p.MarshalBuffers()
			if err != nil {
				t.Fatal(err)
			}
			var got contentapi.ReadContentResponse
			if err := proto.Unmarshal(s.Materialize(), &got); err != nil || got.GetOffset() != offset ||
				!bytes.Equal(got.GetData(), want) {
				t.Errorf("%d at %d: %d bytes at %d, %v", left, offset, len(got.GetData()), got.GetOffset(), err)
			}
			if n := s.Len(); n > largeMessage || (left <= smallMessage && n > smallMessage) {
				t.Errorf("%d at %d: a message of %d bytes", left, offset, n)
			}
			s.Free()
		}
	}
}
