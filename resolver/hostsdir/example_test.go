package hostsdir_test

import (
	"fmt"

	"github.com/tank-snapshotter/tank/resolver/hostsdir"
)

// containerd would ignore this host with a log line; Validate reports what is wrong.
func ExampleValidate() {
	err := hostsdir.Validate([]byte(`
[host."https://example.com"]
capabilities = ["fetch"]
`))
	fmt.Println(err)
	// Output:
	// host "https://example.com": capability "fetch" is not one of pull, resolve, push, referrers: invalid argument
}
