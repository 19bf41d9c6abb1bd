package printable

import "fmt"

// Digest returns the beginning of a digest, which is enough to tell one from another: the algorithm and 12 digits.
func Digest(digest string) string { return Text(digest[:min(len(digest), len("sha256:")+12)]) }

// Bytes returns a number of bytes in decimal units, as "1.5 kB".
func Bytes(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
