package unpack

// WithoutOpenat2 makes Extract do as if the kernel had no openat2.
func (o Options) WithoutOpenat2() *Options {
	o.walk = true
	return &o
}

// MaxSmall is the size of the largest file that is gathered.
const MaxSmall = maxSmall

// PanicOn makes whoever fills the file of this entry panic, until the function that it returns is called.
func PanicOn(name string) (restore func()) {
	before := onFill
	onFill = func(entry string) {
		if entry == name {
			panic(name)
		}
	}
	return func() { onFill = before }
}
