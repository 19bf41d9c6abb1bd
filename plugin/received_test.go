package plugin

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// split returns a message in frames of the given size.
func split(message []byte, frame int) (parts mem.BufferSlice) {
	for at := 0; at < len(message); at += frame {
		parts = append(parts, mem.SliceBuffer(message[at:min(at+frame, len(message))]))
	}
	return parts
}

// TestReceived compares the decoder of requests with that of protocol buffers, for valid and for
// damaged requests.
func TestReceived(t *testing.T) {
	requests := []*contentapi.WriteContentRequest{
		{},
		{Ref: "default/7/layer-sha256:12", Total: 1 << 40, Expected: "sha256:12"},
		{Action: contentapi.WriteAction_WRITE, Offset: 1 << 33, Data: bytes.Repeat([]byte{1, 0x32, 3}, 100)},
		{Action: contentapi.WriteAction_COMMIT, Data: []byte{}, Labels: map[string]string{"a": "b", "c": ""}},
	}
	var messages [][]byte
	for _, a := range requests {
		for _, b := range requests { // concatenated requests are a message, too
			var message []byte
			for _, r := range []*contentapi.WriteContentRequest{a, b} {
				part, err := proto.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				message = append(message, part...)
			}
			messages = append(messages, message)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	agreed := 0
	check := func(message []byte) {
		t.Helper()
		var want contentapi.WriteContentRequest
		var got received
		wantErr, err := proto.Unmarshal(message, &want), got.UnmarshalBuffers(split(message, 1+rng.IntN(40)))
		defer got.free()
		if (err == nil) != (wantErr == nil) || err == nil && !proto.Equal(&got.request, &want) {
			t.Fatalf("%x: %v, %v; protocol buffers: %v, %v", message, &got.request, err, &want, wantErr)
		}
		if err == nil {
			agreed++
		}
	}
	for _, message := range messages {
		check(message)
		for range 1000 {
			damaged := bytes.Clone(message)
			for range 1 + rng.IntN(3) {
				if len(damaged) > 0 {
					damaged[rng.IntN(len(damaged))] = byte(rng.Uint32())
				}
			}
			check(damaged[:rng.IntN(len(damaged)+1)])
		}
	}
	if agreed < len(messages)+1000 {
		t.Errorf("only %d messages were valid", agreed)
	}
}

// TestReceivedUsesBuffersAgain shows that the bytes of a blob are received into reused buffers.
func TestReceivedUsesBuffersAgain(t *testing.T) {
	message, err := proto.Marshal(
		&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Data: make([]byte, 1<<20)})
	if err != nil {
		t.Fatal(err)
	}
	frames := split(message, 16<<10)
	const rounds = 200
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		var r received
		if err := r.UnmarshalBuffers(frames); err != nil || len(r.request.GetData()) != 1<<20 {
			t.Fatal(len(r.request.GetData()), err)
		}
		r.free()
	}
	runtime.ReadMemStats(&after)
	// Under the race detector, sync.Pool drops a quarter of its buffers.
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 1<<19 {
		t.Errorf("%d bytes are allocated for a request of 1 MiB", each)
	}
}
