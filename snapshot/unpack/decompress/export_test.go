package decompress

// SetOwnGzip chooses the decoder of gzip until the function that it returns is called.
func SetOwnGzip(own bool) (restore func()) {
	before := ownGzip
	ownGzip = own
	return func() { ownGzip = before }
}

// OwnGzip reports which decoder of gzip is in use.
func OwnGzip() bool { return ownGzip }
