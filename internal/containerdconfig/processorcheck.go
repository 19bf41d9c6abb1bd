package containerdconfig

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/internal/processor"
)

// processorSection returns the place of a stream processor, for findings.
func processorSection(id string) string { return fmt.Sprintf("[stream_processors.%q]", id) }

// streamProcessors reports which stream processors of containerd's config Tank runs, and why it does not run
// the others.
func (k *checker) streamProcessors() {
	if k.in.Processors != nil {
		k.compareProcessors()
		return
	}
	configured := slices.DeleteFunc(k.configuredProcessors(), func(p processor.Processor) bool {
		unread := decodes(p, nil)
		if len(unread) == 0 {
			k.note("", "Tank does not run the stream processor %q: Tank reads layers of %s itself", p.ID,
				strings.Join(p.Accepts, ", "))
		}
		return len(unread) == 0
	})
	if len(configured) == 0 {
		return
	}
	for _, name := range k.config.files {
		info, err := os.Stat(name)
		if err == nil {
			err = owned(info)
		}
		if err != nil {
			k.wrong("", "Tank does not run the stream processors of this containerd, because of %s: %v", name, err)
			return
		}
	}
	for _, p := range configured {
		types := strings.Join(decodes(p, nil), ", ")
		if err := p.Find(); err != nil {
			k.wrong(processorSection(p.ID), "names a program that can't be run, so layers of %s can't be unpacked: %v",
				types, err)
			continue
		}
		k.note("", "Tank runs the stream processor %q (%s) for layers of %s, within the limits of Tank's own "+
			"unit", p.ID,
			p.Path, types)
	}
}

// configuredProcessors returns the processors that containerd's config adds to the built-in ones or changes.
func (k *checker) configuredProcessors() (list []processor.Processor) {
	builtIn := builtInProcessors()
	for _, p := range Sorted(k.config.StreamProcessors) {
		b := builtIn[p.ID]
		if b.ID = p.ID; !reflect.DeepEqual(p, b) {
			list = append(list, p)
		}
	}
	return list
}

// compareProcessors compares the media types that Tank's own stream processors and containerd's decode.
func (k *checker) compareProcessors() {
	own, theirs := Sorted(k.in.Processors), k.config.processors()
	for _, p := range k.configuredProcessors() {
		for _, t := range decodes(p, own) {
			k.wrong(processorSection(p.ID), "decodes layers of %s, but Tank's own config has no stream "+
				"processor that does", t).
				remedy("Add it there, or leave [stream_processors] out of Tank's config, so that Tank runs " +
					"containerd's.")
		}
	}
	for _, p := range own {
		for _, t := range decodes(p, theirs) {
			k.note("", "Tank's own config decodes layers of %s, but this containerd does not, so other "+
				"snapshotters can't "+
				"unpack them", t).remedy("`tank-snapshotter config containerd` prints the section.")
		}
	}
}

// decodes returns the media types that p accepts and that no chain of processors in all turns into a layer
// that Tank reads.
func decodes(p processor.Processor, all []processor.Processor) (types []string) {
	for _, t := range p.Accepts {
		if !mediatype.Layer(t) && processor.Chain(all, t, mediatype.Layer) == nil {
			types = append(types, t)
		}
	}
	return types
}
