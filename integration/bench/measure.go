package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// sample has the measurements of one pull.
type sample struct {
	wall      time.Duration
	cpu       time.Duration // user and system, of every process of the contender
	rss       int64         // peaks in bytes, the sum over its processes
	disk      int64         // bytes, blobs included
	elsewhere time.Duration // CPU time of the machine that neither the contender nor the registry took
}

// noise is the share of the CPUs that others took, in percent.
func (s sample) noise() float64 {
	return 100 * s.elsewhere.Seconds() / (s.wall.Seconds() * float64(runtime.NumCPU()))
}

// tick is USER_HZ, which is the same on every Linux that Go runs on.
const tick = time.Second / 100

// meter measures the commands and daemons of one pull.
type meter struct {
	r     *run
	start time.Time
	busy  time.Duration
	reg   time.Duration
	base  map[*daemon]time.Duration

	cpu  time.Duration // of commands that ended
	mu   sync.Mutex    // guards peak
	peak map[int]int64 // by pid
	stop chan struct{}
	done chan struct{}
}

// begin starts the clock. Daemons' peaks are those from now on.
func (r *run) begin() (*meter, error) {
	m := &meter{r: r, base: map[*daemon]time.Duration{}, peak: map[int]int64{}, stop: make(chan struct{}),
		done: make(chan struct{})}
	for _, d := range r.daemons {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.cmd.Process.Pid), []byte("5"), 0); err != nil {
			return nil, err
		}
		m.base[d] = cpuOf(d.cmd.Process.Pid)
		m.look(d.cmd.Process.Pid)
	}
	m.busy, m.reg = machineCPU(), cpuOf(r.reg.cmd.Process.Pid)
	go m.watch()
	m.start = time.Now()
	return m, nil
}

// watch follows the peaks of memory: ru_maxrss would be that of this process, which forked them, if that is larger.
func (m *meter) watch() {
	defer close(m.done)
	for {
		select {
		case <-m.stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
		m.mu.Lock()
		pids := make([]int, 0, len(m.peak))
		for pid := range m.peak {
			pids = append(pids, pid)
		}
		m.mu.Unlock()
		for _, pid := range pids {
			m.look(pid)
		}
	}
}

// look records the peak of a process until now. The last record counts for a process that has ended.
func (m *meter) look(pid int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, ok := bytes.Cut(b, []byte("VmHWM:"))
	m.mu.Lock()
	defer m.mu.Unlock()
	if !ok {
		if _, known := m.peak[pid]; !known {
			m.peak[pid] = 0
		}
		return
	}
	kb, _ := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
	m.peak[pid] = max(m.peak[pid], kb<<10)
}

// end stops the clock and sums up.
func (m *meter) end() sample {
	s := sample{wall: time.Since(m.start), cpu: m.cpu}
	busy, reg := machineCPU()-m.busy, cpuOf(m.r.reg.cmd.Process.Pid)-m.reg
	for d, base := range m.base {
		s.cpu += cpuOf(d.cmd.Process.Pid) - base
		m.look(d.cmd.Process.Pid)
	}
	close(m.stop)
	<-m.done
	for _, peak := range m.peak {
		s.rss += peak
	}
	s.elsewhere = max(0, busy-reg-s.cpu)
	return s
}

// pipe runs commands at once, the output of each being the input of the next, and waits for all.
func (m *meter) pipe(cmds ...*exec.Cmd) error {
	var logs []*bytes.Buffer
	var pipes []*os.File
	closePipes := func() {
		for _, f := range pipes {
			f.Close()
		}
		pipes = nil
	}
	defer closePipes()
	for i, cmd := range cmds {
		log := &bytes.Buffer{}
		logs = append(logs, log)
		cmd.Stderr = log
		if i+1 < len(cmds) {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			pipes = append(pipes, r, w)
			cmd.Stdout, cmds[i+1].Stdin = w, r
		}
	}
	var failed error
	started := cmds[:0:0]
	for _, cmd := range cmds {
		if failed = start(cmd); failed != nil {
			break
		}
		started = append(started, cmd)
		m.look(cmd.Process.Pid)
	}
	closePipes()
	for i, cmd := range started {
		err := cmd.Wait()
		m.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() // of its children, too
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, last(logs[i].Bytes(), 2000))
		}
	}
	return failed
}

// cpuOf is the CPU time of a process and of its children that ended.
func cpuOf(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		return 0
	}
	var sum time.Duration
	for _, v := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(v, 10, 64)
		sum += time.Duration(n) * tick
	}
	return sum
}

// machineCPU is what all CPUs did since the machine started, time that the hypervisor took away included.
func machineCPU() time.Duration {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	var sum time.Duration
	for i, v := range strings.Fields(line) {
		if i >= 1 && i <= 8 && i != 4 && i != 5 { // neither idle nor waiting for a disk
			n, _ := strconv.ParseInt(v, 10, 64)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

func last(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
