package inflate

// Smallest limits that Shrink takes.
const (
	LeastIn  = fastIn + word
	LeastOut = window
)

// Shrink makes the buffers smaller until the next Reset, so that short inputs reach their ends.
func (r *Reader) Shrink(in, out int) {
	r.d.inLimit, r.d.outLimit = min(max(in, LeastIn), inSize), min(max(out, LeastOut), outFull)
}
