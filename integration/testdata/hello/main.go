// Hello is the program in the tests' own image: static, and without anything around it.
//
//	hello                prints the line that the tests look for
//	hello count FILE     adds a line to FILE every 20 ms until it is ended
//	hello pause          waits to be ended
//	echo WORD...         prints the words: by that name it stands in for the real one
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	if filepath.Base(os.Args[0]) == "echo" {
		fmt.Println(strings.Join(os.Args[1:], " "))
		return
	}
	args := append(os.Args[1:], "", "")
	switch args[0] {
	case "":
		fmt.Println("hello from tank")
	case "count":
		if err := count(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "pause":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
	default:
		fmt.Fprintln(os.Stderr, "usage: hello [count FILE | pause]")
		os.Exit(2)
	}
}

// count opens the file anew for each line, so that it also shows that the root filesystem still answers.
func count(name string) error {
	for n := 0; ; n++ {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(f, n); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
