package socket_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tank-snapshotter/tank/internal/socket"
)

func ExampleListen() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	l, err := socket.Listen(context.Background(), dir, "s", nil)
	if err != nil {
		panic(err)
	}
	fi, err := os.Stat(filepath.Join(dir, "s"))
	if err != nil {
		panic(err)
	}
	fmt.Println(fi.Mode(), l.Close())
	// Output: Srw------- <nil>
}
