// Hello is the program in the tests' own image: static, and without anything around it.
//
//	hello                prints the line that the tests look for
//	hello count FILE     adds a line to FILE every 20 ms until it is ended
//	hello live FILE READ...  adds a line to FILE every quarter of a second and reads the
//	                     other files, until one of them has changed
//	hello cat FILE...    prints files
//	hello stat FILE...   prints the owner, the group and the permissions of files
//	hello write FILE TEXT
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
	case "live", "cat", "stat", "write":
		if err := commands[args[0]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "pause":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
	default:
		fmt.Fprintln(os.Stderr,
			"usage: hello [count FILE | live FILE READ... | cat FILE... | stat FILE... | write FILE TEXT | pause]")
		os.Exit(2)
	}
}

var commands = map[string]func(args []string) error{"live": live, "cat": cat, "stat": stat, "write": write}

// live ends with an error when a file that it reads is not what it was at first.
func live(args []string) error {
	first := map[string]string{}
	for n := 0; ; n++ {
		for _, name := range args[1:] {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if was, ok := first[name]; ok && was != string(b) {
				return fmt.Errorf("%s changed", name)
			}
			first[name] = string(b)
		}
		if err := addLine(args[0], n); err != nil {
			return err
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func cat(args []string) error {
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		os.Stdout.Write(b)
	}
	return nil
}

func stat(args []string) error {
	for _, name := range args {
		fi, err := os.Lstat(name)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Println(name, st.Uid, st.Gid, fi.Mode())
	}
	return nil
}

func write(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) }

func count(name string) error {
	for n := 0; ; n++ {
		if err := addLine(name, n); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// addLine opens the file anew, so that it also shows that the root filesystem still answers.
func addLine(name string, n int) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, n); err != nil {
		return err
	}
	return f.Close()
}
