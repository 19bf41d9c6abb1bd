// Package tarstream reads the tar stream of a blob, and decompresses and hashes the stream ahead of its reader.
//
// It owns nothing on disk. Its invariant: if Read returns nil, the blob was read to its end, and the hash contains
// every byte of the tar.
//
// The surprising rule: decompressing, hashing and reading run in three goroutines, which share at most four buffers of
// 256 KiB. One stream takes about 1 MiB.
package tarstream
