// Package tarstream reads the tar stream of a blob, decompressed and hashed ahead of its reader.
//
// It owns nothing on disk. Its invariant: when Read returns nil, the blob was read to its end and the
// hash has seen every byte of the tar. The surprising rule: decompressing, hashing and reading run in
// three goroutines that share buffers of 256 KiB, four at most, so one stream takes about 1 MiB.
package tarstream
