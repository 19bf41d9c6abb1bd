package fsprobe

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes sets the attribute that makes a directory opaque: trusted.overlay.opaque or, where this
// process is not root of the machine, user.overlay.opaque.
func (p *probe) attributes() error {
	dir := p.at("opaque")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	name := "trusted.overlay.opaque"
	err := unix.Lsetxattr(dir, name, []byte("y"), 0)
	if errors.Is(err, unix.EPERM) {
		name, p.user = "user.overlay.opaque", true
		err = unix.Lsetxattr(dir, name, []byte("y"), 0)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	value := make([]byte, 2)
	n, err := unix.Lgetxattr(dir, name, value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if string(value[:n]) != "y" {
		return wrong("%s does not keep its value", name)
	}
	return nil
}

// upper has the kernel make an overlay whose upper directory is on the file system. It is attached
// to no directory, so it is gone when its descriptor is closed. A process that may not mount finds
// out nothing.
func (p *probe) upper() error {
	for _, dir := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(p.at(dir), 0o700); err != nil {
			return err
		}
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	options := [][2]string{
		{"lowerdir", p.at("lower")}, {"upperdir", p.at("upper")}, {"workdir", p.at("work")},
	}
	if p.user {
		options = append(options, [2]string{"userxattr", ""})
	}
	for _, o := range options {
		if o[1] == "" {
			err = unix.FsconfigSetFlag(fd, o[0])
		} else {
			err = unix.FsconfigSetString(fd, o[0], o[1])
		}
		if err != nil {
			return refusal(fd, err)
		}
	}
	return refusal(fd, unix.FsconfigCreate(fd))
}

// refusal returns nil, or why the kernel refuses a mount that is being made. An error for any other
// reason than the directories counts as none.
func refusal(fd int, err error) error {
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	var reasons []string
	for line := make([]byte, 512); ; {
		n, readErr := unix.Read(fd, line) // one message of the kernel: "e overlay: text"
		if readErr != nil {
			break
		}
		if text, ok := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "e "); ok {
			reasons = append(reasons, text)
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(reasons, ", "), err)
}
