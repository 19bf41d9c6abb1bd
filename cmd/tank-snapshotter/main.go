// Command tank-snapshotter keeps OCI images on one machine: it pulls them, alone or for containerd.
//
// It owns nothing on disk but sockets: tank.sock in each root that it owns, and the daemon's socket. Package
// tank owns the rest of a root.
//
// Its invariant: stdout gets the result of the command and nothing else. Progress, logs and errors go to
// stderr, and the exit code is the kind of the error (exit.go).
//
// The surprising rule: another process may do the work. One process owns a root at a time. If that is a
// daemon or another command, this command sends its request to it.
package main

import (
	"fmt"
	stdlog "log"
	"os"
	"runtime/debug"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/internal/printable"
)

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	os.Exit(run(os.Args[1:]))
}

// memoryLimit is the heap size above which Go collects garbage more often, so that the process stays within
// 256 MiB for images of 500,000 entries (docs/adr/0023-memory.md). The memory in use may exceed it. The
// environment variable GOMEMLIMIT overrides it.
const memoryLimit = 192 << 20

// run runs one command and returns its exit code.
func run(args []string) int {
	stdout, stderr := printable.NewWriter(os.Stdout), printable.NewWriter(os.Stderr)
	escapeLogs(stderr)
	c := &cli{}
	ctx, stop := c.ending.context()
	defer stop()
	root := c.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !c.began {
		// cobra rejected the arguments before a command ran.
		err = usageError{err}
	}
	if code := c.ending.code(); err != nil && code != 0 {
		giveUp(c.ending.message(), code)
	}
	if err != nil {
		printable.Fprintf(stderr, "tank-snapshotter: %s\n", err)
		if hint := hintFor(err); hint != "" {
			printable.Fprintf(stderr, "%s\n", hint)
		}
	}
	_ = stdout.Flush() // it can only hold an incomplete character, with which no valid output ends
	return exitCode(err)
}

// escapeLogs makes log entries printable: those of Tank's and containerd's packages, and lines of the
// standard library's log, in which net/http quotes what a server sent.
func escapeLogs(stderr *printable.Writer) {
	log.L.Logger.SetFormatter(printable.LogFormatter(log.L.Logger.Formatter))
	stdlog.SetOutput(stderr)
}

// cli has the flags of every command, and what the commands share.
type cli struct {
	root       string
	address    string
	configFile string
	logLevel   string

	ending ending
	// read caches the results of settingsFor, because a config that is a pipe can be read only once. The key is the
	// argument serve.
	read map[bool]settings

	began bool // a command has begun, so cobra has accepted the arguments
}

// command returns the program's command with all subcommands.
func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "tank-snapshotter",
		Short: "Keep OCI images on one machine, for any program and for containerd",
		Long: "Keep OCI images on one machine, for any program and for containerd.\n\n" +
			exitCodes,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err := log.SetLevel(first(c.logLevel, "info")); err != nil {
				return fmt.Errorf("--log-level %q: %w", c.logLevel, err)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.root, "root", "", "directory that holds everything (default $TANK_CACHE, the config's "+
		"image_cache, for uid 0 the daemon's if there is one, ~/.cache/tank)")
	flags.StringVar(&c.root, "cache", "", "the same as --root")
	_ = flags.MarkHidden("cache")
	flags.StringVar(&c.address, "address", "", "socket of the daemon to ask, whatever root it has (serve: to "+
		"listen on)")
	flags.StringVar(&c.configFile, "config", "",
		"config file (default $XDG_CONFIG_HOME/tank/config.toml, else "+systemConfig+")")
	flags.StringVar(&c.logLevel, "log-level", "", "trace, debug, info, warn, error or fatal (default info)")
	root.AddCommand(c.pullCommand(), c.imagesCommand(), c.inspectCommand(), c.removeCommand(), c.gcCommand(),
		c.checkCommand(), c.holdersCommand(), c.releaseCommand(), c.serveCommand(), c.configCommand(),
		c.versionCommand())
	return root
}

// do returns f as the function of a command, with a note that cobra has accepted the arguments.
func (c *cli) do(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.began = true
		return f(cmd, args)
	}
}
