package unpack

// WithoutOpenat2 makes Extract do as if the kernel had no openat2.
func (o Options) WithoutOpenat2() *Options {
	o.walk = true
	return &o
}
