package decompress

// SetOwnGzip selects the gzip decoder. restore selects the former one again.
func SetOwnGzip(own bool) (restore func()) {
	before := ownGzip
	ownGzip = own
	return func() { ownGzip = before }
}

// OwnGzip reports which decoder of gzip is in use.
func OwnGzip() bool { return ownGzip }
