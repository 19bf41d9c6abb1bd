package auth_test

import (
	"context"
	"fmt"

	"github.com/tank-snapshotter/tank/resolver/auth"
)

// A user's login for one registry takes precedence over Docker's configuration for all others.
func ExampleLogin() {
	source := auth.Login("registry.example.com", auth.Credential{Username: "alice", Password: "secret"},
		auth.DockerConfig(""))
	credential, err := source(context.Background(), "registry.example.com")
	if err != nil {
		panic(err)
	}
	fmt.Println(credential)
	// Output: credential of "alice"
}
