// Program bench pulls images with Tank and with its peers in turn and prints what each of them took: wall time, CPU
// seconds, peak memory, bytes on disk.
//
// On disk it owns one temporary directory, what it mounts there, and the images in its cache directory.
// Peers come from the Go module proxy, as ../go.mod pins them, and from Debian's packages; one that is
// missing is left out and reported.
//
// Its invariant: it removes exactly the mounts, loop devices, processes and files that it made, also on
// Ctrl-C. It mounts in a mount namespace of its own, so that even after SIGKILL only files are left.
//
// The surprising rule: every run gets a file system made for it. A run after an `rm -rf` would measure how ext4 avoids
// inodes that were deleted lately, and the leftovers of the run before.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/tank-snapshotter/tank/integration"
)

// options are the flags.
type options struct {
	scenarios string
	image     string  // oci:DIR:TAG; empty: generated
	size      int     // MB of a generated image, compressed; 0: the scenario's
	layers    int     // 0: the scenario's
	scale     float64 // of what is generated
	rounds    int     // 0: the scenario's
	only      string
	fs        string
	fsSize    int // GiB
	backing   string
	cache     string
	write     string
	builds    string
	quiet     float64
}

// inner marks the process that works, in a mount namespace of its own; its value is the temporary directory.
const inner = "TANK_BENCH_DIR"

func main() {
	var o options
	flag.StringVar(&o.scenarios, "scenario", "pull", "comma-separated `names`, or all: "+describeScenarios())
	flag.StringVar(&o.image, "image", os.Getenv("IMAGE"), "`oci:DIR:TAG` to pull instead of the scenario's image")
	flag.IntVar(&o.size, "size", 0,
		"`MB` (10^6 bytes) of the generated image, compressed, instead of the scenario's size")
	flag.IntVar(&o.layers, "layers", 0, "layers of the generated image, instead of the scenario's")
	flag.Float64Var(&o.scale, "scale", 1, "`factor` for the sizes of generated images: 0.02 to see whether all works")
	flag.IntVar(&o.rounds, "rounds", 0, "how often each contender pulls, instead of the scenario's rounds")
	flag.StringVar(&o.only, "only", "",
		"comma-separated `names` of contenders, instead of the scenario's; the others are compared with the first")
	flag.StringVar(&o.fs, "fs", "xfs", "file system made for each run: xfs, ext4 or tmpfs")
	flag.IntVar(&o.fsSize, "fs-size", 0, "its size in `GiB`; 0: as the largest image wants it, at least 4")
	flag.StringVar(&o.backing, "backing", os.TempDir(),
		"`directory` of the loop file and all else; on tmpfs a busy disk does not count")
	flag.StringVar(&o.cache, "cache", filepath.Join(os.TempDir(), "tank-bench"),
		"`directory` that keeps generated images for the next time")
	flag.StringVar(&o.write, "write", "",
		"`file` that gets each table, between the markers bench-SCENARIO, and the charts in bench/ beside it")
	flag.StringVar(&o.builds, "builds", "", "other builds of Tank to compare with: comma-separated `name=binary`")
	flag.Float64Var(&o.quiet, "quiet", 0,
		"repeat, at most ten times, a run during which others took more than this `percent` of the CPUs; 0: never")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	var err error
	if dir := os.Getenv(inner); dir != "" {
		err = work(dir, o)
	} else {
		err = enter(o)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(1) // the process that worked said it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// enter starts the program again in a mount namespace of its own and removes the temporary directory
// after its end. A signal ends the inner process, which then ends its own.
func enter(o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems, and compares owners and xattrs too")
	}
	dir, err := os.MkdirTemp(o.backing, "tkb") // short: unix socket paths have 108 bytes
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inner+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	// It has a process group of its own, so that Ctrl-C reaches it only through this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGTERM}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := start(cmd); err != nil {
		return err
	}
	go func() {
		for range signals {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	return cmd.Wait()
}

// work runs the scenarios inside the namespace. If one fails, the others still run.
func work(dir string, o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	picked, err := selectScenarios(o)
	if err != nil {
		return err
	}
	progs, err := findPrograms(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range picked {
		b := &bench{ctx: ctx, dir: dir, opts: o, progs: progs, scenario: s}
		if err := b.run(); err != nil {
			errs = append(errs, fmt.Errorf("scenario %s: %w", s.name, err))
			fmt.Fprintln(os.Stderr, "bench:", errs[len(errs)-1])
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// run measures the scenario, prints the report, and writes it and the charts if that is asked for.
func (b *bench) run() error {
	all, err := selectContenders(b.only, b.opts.builds, b.progs)
	if err != nil {
		return err
	}
	rows, err := b.measure(all)
	if err != nil {
		return err
	}
	text := b.report(rows)
	fmt.Print("\n" + text)
	if b.opts.write == "" {
		return nil
	}
	links, err := writeCharts(filepath.Join(filepath.Dir(b.opts.write), "bench"), b.charts(rows))
	if err != nil {
		return err
	}
	return writeSection(b.opts.write, b.section(), integration.WrapMarkdown(text)+"\n"+links)
}
