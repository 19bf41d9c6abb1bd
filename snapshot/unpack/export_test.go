package unpack

// WithoutOpenat2 makes Extract behave as if the kernel had no openat2.
func (o Options) WithoutOpenat2() *Options {
	o.withoutOpenat2 = true
	return &o
}
