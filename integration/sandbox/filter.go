package main

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Where struct seccomp_data has the number of the call, the architecture, and the lower half of an argument.
const (
	offsetNumber = 0
	offsetArch   = 4
)

func offsetArgument(n uint32) uint32 { return 16 + 8*n }

const (
	load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bits  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	and   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	leave = unix.BPF_RET | unix.BPF_K
)

// The flags of clone(2) that make namespaces.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// program is a filter that is being written.
type program struct {
	code    []unix.SockFilter
	numbers map[string]int
}

func (p *program) add(code uint16, k uint32, yes, no uint8) {
	p.code = append(p.code, unix.SockFilter{Code: code, Jt: yes, Jf: no, K: k})
}

func refuse(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// filter writes the unit's filter. What the other restrictions refuse is EPERM, as systemd has it.
func (s *settings) filter() ([]unix.SockFilter, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	p := &program{numbers: info.SyscallNames}
	p.add(load, offsetArch, 0, 0)
	p.add(equal, uint32(info.ID), 1, 0)
	p.add(leave, unix.SECCOMP_RET_KILL_PROCESS, 0, 0)
	p.add(load, offsetNumber, 0, 0)
	s.restrict(p)
	if s.calls == nil {
		p.add(leave, unix.SECCOMP_RET_ALLOW, 0, 0)
		return p.code, nil
	}
	var allowed []int
	for name, allow := range s.calls {
		if nr, ok := p.numbers[name]; ok && allow {
			allowed = append(allowed, nr)
		}
	}
	slices.Sort(allowed)
	for _, nr := range allowed {
		p.add(equal, uint32(nr), 0, 1)
		p.add(leave, unix.SECCOMP_RET_ALLOW, 0, 0)
	}
	last := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if s.refusal != 0 {
		last = refuse(s.refusal)
	}
	p.add(leave, last, 0, 0)
	return p.code, nil
}

// restrict writes the refusals that do not depend on SystemCallFilter=.
func (s *settings) restrict(p *program) {
	if s.families != nil {
		p.unless("socket", 0, s.families, unix.EAFNOSUPPORT)
	}
	if s.noNamespaces {
		p.never("unshare", unix.EPERM)
		p.never("setns", unix.EPERM)
		p.never("clone3", unix.ENOSYS) // its flags lie in memory
		p.whenBits("clone", 0, namespaceFlags, unix.EPERM)
	}
	if s.noWriteExecute {
		p.whenAll("mmap", 2, unix.PROT_WRITE|unix.PROT_EXEC, unix.EPERM)
		p.whenBits("mprotect", 2, unix.PROT_EXEC, unix.EPERM)
		p.whenBits("pkey_mprotect", 2, unix.PROT_EXEC, unix.EPERM)
	}
	if s.noPersona {
		p.unless("personality", 0, []uint32{0}, unix.EPERM)
	}
	if s.noRealtime {
		p.unless("sched_setscheduler", 1, []uint32{unix.SCHED_NORMAL, unix.SCHED_BATCH, unix.SCHED_IDLE}, unix.EPERM)
		p.never("sched_setattr", unix.EPERM)
	}
}

// when writes instructions for one call; the number of the call is loaded again behind them.
func (p *program) when(call string, body func()) {
	nr, ok := p.numbers[call]
	if !ok {
		return
	}
	at := len(p.code)
	p.add(equal, uint32(nr), 0, 0)
	body()
	p.add(load, offsetNumber, 0, 0)
	p.code[at].Jf = uint8(len(p.code) - at - 1)
}

func (p *program) never(call string, e unix.Errno) {
	p.when(call, func() { p.add(leave, refuse(e), 0, 0) })
}

// unless refuses a call whose argument is none of the values.
func (p *program) unless(call string, argument uint32, values []uint32, e unix.Errno) {
	p.when(call, func() {
		p.add(load, offsetArgument(argument), 0, 0)
		for i, v := range values {
			p.add(equal, v, uint8(len(values)-i), 0)
		}
		p.add(leave, refuse(e), 0, 0)
	})
}

// whenBits refuses a call whose argument has any of the bits.
func (p *program) whenBits(call string, argument, mask uint32, e unix.Errno) {
	p.when(call, func() {
		p.add(load, offsetArgument(argument), 0, 0)
		p.add(bits, mask, 0, 1)
		p.add(leave, refuse(e), 0, 0)
	})
}

// whenAll refuses a call whose argument has all of the bits.
func (p *program) whenAll(call string, argument, mask uint32, e unix.Errno) {
	p.when(call, func() {
		p.add(load, offsetArgument(argument), 0, 0)
		p.add(and, mask, 0, 0)
		p.add(equal, mask, 0, 1)
		p.add(leave, refuse(e), 0, 0)
	})
}

// install makes the filter that of this thread.
func install(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}
