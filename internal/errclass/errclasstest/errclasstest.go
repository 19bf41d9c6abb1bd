// Package errclasstest shows in tests that every error which leaves a package has a class of
// package errdefs.
//
// It owns nothing on disk.
//
// Its invariant: a package cannot get a new exported function that returns an error without the
// test noticing.
//
// The surprising rule: methods of unexported types count as well, because a caller reaches them
// through interfaces.
package errclasstest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank/internal/errclass"
)

// Check fails the test if err is an error without a class. what says where it comes from.
func Check(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil && errclass.Of(err) == nil {
		t.Errorf("%s: error without a class: %v", what, err)
	}
}

// Complete fails the test unless calls has an entry for every function of the package in the
// directory dir that returns an error: "Open" for a function, "Store.Sweep" for a method. except
// names those that need none, each with a reason.
func Complete[T any](t testing.TB, dir string, calls map[string]T, except map[string]string) {
	t.Helper()
	functions := exported(t, dir)
	for _, name := range functions {
		_, called := calls[name]
		if reason := except[name]; called == (reason != "") {
			t.Errorf("%s: needs either a call or a reason for having none", name)
		}
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(calls)), slices.Collect(maps.Keys(except))) {
		if !slices.Contains(functions, name) {
			t.Errorf("%s: no function of the package that returns an error", name)
		}
	}
}

// exported lists the exported functions and methods whose last result is an error.
func exported(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil,
			parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.IsExported() && returnsError(f.Type) {
				names = append(names, receiver(f)+f.Name.Name)
			}
		}
	}
	if len(names) == 0 {
		t.Fatalf("no functions in %s", dir)
	}
	return names
}

func returnsError(f *ast.FuncType) bool {
	if f.Results == nil || len(f.Results.List) == 0 {
		return false
	}
	last, ok := f.Results.List[len(f.Results.List)-1].Type.(*ast.Ident)
	return ok && last.Name == "error"
}

// receiver returns the name of a method's type and a dot, and "" for a function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if generic, ok := typ.(*ast.IndexExpr); ok {
		typ = generic.X
	}
	return typ.(*ast.Ident).Name + "."
}
