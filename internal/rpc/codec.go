package rpc

import (
	"encoding/json"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Marshaler is a message with an encoding of its own.
type Marshaler interface {
	MarshalBuffers() (mem.BufferSlice, error)
}

// Unmarshaler is a message that decodes itself. It must not keep data.
type Unmarshaler interface {
	UnmarshalBuffers(data mem.BufferSlice) error
}

// Codec is the codec of a Server.
type Codec struct{}

// Name returns the name of the codec for protocol buffers, which it replaces.
func (Codec) Name() string { return protocodec.Name }

// Marshal encodes a message.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case Marshaler:
		return v.MarshalBuffers()
	case proto.Message:
		return encoding.GetCodecV2(protocodec.Name).Marshal(v)
	}
	b, err := json.Marshal(v)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

// Unmarshal decodes a message.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case Unmarshaler:
		return v.UnmarshalBuffers(data)
	case proto.Message:
		return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
	}
	return json.Unmarshal(data.Materialize(), v)
}
