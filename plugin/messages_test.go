package plugin

import (
	"bytes"
	"math/rand/v2"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// sliced is bytes as gRPC receives them, in frames.
func sliced(b []byte, frame int) (s mem.BufferSlice) {
	for len(b) > frame {
		s, b = append(s, mem.SliceBuffer(b[:frame])), b[frame:]
	}
	return append(s, mem.SliceBuffer(b))
}

// sameAsProto decodes bytes both ways.
func sameAsProto(t *testing.T, b []byte) {
	t.Helper()
	stock := encoding.GetCodecV2("proto")
	for _, pair := range [][2]proto.Message{
		{&contentapi.WriteContentRequest{Ref: "old"}, &contentapi.WriteContentRequest{}},
		{&contentapi.ReadContentResponse{Data: []byte("old")}, &contentapi.ReadContentResponse{}},
	} {
		err, want := messages{}.Unmarshal(sliced(b, 1000), pair[0]), stock.Unmarshal(sliced(b, 1000), pair[1])
		if (err == nil) != (want == nil) {
			t.Errorf("%T: %v, but %v of gRPC's codec", pair[0], err, want)
		} else if err == nil && !proto.Equal(pair[0], pair[1]) {
			t.Errorf("%T: %v, but %v of gRPC's codec", pair[0], pair[0], pair[1])
		}
	}
}

var writes = []*contentapi.WriteContentRequest{
	{},
	{Action: contentapi.WriteAction_WRITE, Ref: "default/1/layer-x", Total: 1 << 40, Offset: 5, Data: []byte("bytes")},
	{Action: contentapi.WriteAction_COMMIT, Expected: "sha256:x", Data: bytes.Repeat([]byte{1}, 3000), Labels: map[string]string{"a": "b", "c": ""}},
}

// TestMessages decodes messages, and what is left of damaged ones, as gRPC's own codec does.
func TestMessages(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, w := range writes {
		b, err := proto.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		sameAsProto(t, b)
		sameAsProto(t, append(b, b...)) // the last of each field counts
		for range 300 {
			damaged := bytes.Clone(b)
			if len(damaged) > 0 {
				damaged[random.IntN(min(len(damaged), 60))] ^= byte(1 << random.IntN(8))
			}
			sameAsProto(t, damaged[:len(damaged)-random.IntN(min(len(damaged)+1, 5))])
		}
	}
}

// FuzzMessages is TestMessages on any bytes.
func FuzzMessages(f *testing.F) {
	for _, w := range writes {
		b, err := proto.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(sameAsProto)
}

// TestPieces shows that each piece decodes to its bytes and fits the buffer that it is received into.
func TestPieces(t *testing.T) {
	for _, left := range []int64{1, 1000, smallMessage - frame, smallMessage, smallMessage + 1, largeMessage - frame, largeMessage, 1 << 40} {
		for _, offset := range []int64{0, 1, 1 << 62} {
			p := newPiece(offset, left)
			for i := range *p.data {
				(*p.data)[i] = byte(i)
			}
			want := bytes.Clone(*p.data)
			s, err := messages{}.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var got contentapi.ReadContentResponse
			if err := proto.Unmarshal(s.Materialize(), &got); err != nil || got.GetOffset() != offset || !bytes.Equal(got.GetData(), want) {
				t.Errorf("%d at %d: %d bytes at %d, %v", left, offset, len(got.GetData()), got.GetOffset(), err)
			}
			if n := s.Len(); n > largeMessage || (left <= smallMessage && n > smallMessage) {
				t.Errorf("%d at %d: a message of %d bytes", left, offset, n)
			}
			s.Free()
		}
	}
}
