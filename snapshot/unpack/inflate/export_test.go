package inflate

// The smallest limits that Shrink applies.
const (
	LeastIn  = fastIn + word
	LeastOut = window
)

// Shrink limits the input and output buffers until the next Reset, so that short inputs fill them.
func (r *Reader) Shrink(in, out int) {
	r.d.inLimit, r.d.outLimit = min(max(in, LeastIn), inSize), min(max(out, LeastOut), outFull)
}
