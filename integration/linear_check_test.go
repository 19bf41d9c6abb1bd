package integration

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/containerd/errdefs"
)

// Numbers of TestLinear.
const (
	linearClients = 16
	linearCalls   = 8                // calls of each client in one history
	linearLimit   = 10 * time.Second // for the drawing of a history that has no order
)

// linearModel is a service as it would be with one caller at a time.
type linearModel[S comparable, I, O any] struct {
	initial S
	// next returns the states that may follow state when call gave result, none if it cannot give that result. Without
	// a result, it returns what any result may leave.
	next func(state S, call I, result *O) []S
	// observes reports whether a call with this result never changes the state.
	observes func(call I, result *O) bool
	// parts splits a history into parts that do not influence each other; nil if it has only one.
	parts    func([]porcupine.Operation) [][]porcupine.Operation
	describe func(call I, result *O) string
}

// porcupine returns the model as the checker wants it.
func (m linearModel[S, I, O]) porcupine() porcupine.Model {
	seed := maphash.MakeSeed()
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{m.initial} },
		Step: func(state, call, result any) []any {
			var states []any
			for _, s := range m.next(state.(S), call.(I), result.(*O)) {
				states = append(states, s)
			}
			return states
		},
		Hash:              func(state any) uint64 { return maphash.Comparable(seed, state.(S)) },
		DescribeOperation: func(call, result any) string { return m.describe(call.(I), result.(*O)) },
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	}).ToModel()
}

// linearClient makes one call and returns its result.
type linearClient[I, O any] func(call I) (O, error)

// runHistory lets all clients make their calls at once, each client one after the other, and returns what happened.
// calls returns the calls of one client, one at a time, and sees the result of the one before.
func runHistory[I, O any](seed uint64, clients []linearClient[I, O],
	next func(r *rand.Rand, client int, last *O) I,
) ([]porcupine.Operation, error) {
	var (
		mu      sync.Mutex
		history []porcupine.Operation
		errs    []error
		wg      sync.WaitGroup
	)
	start := make(chan struct{})
	began := time.Now()
	for i, call := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			var last *O
			<-start
			for range linearCalls {
				in := next(r, i, last)
				called := time.Since(began).Nanoseconds()
				out, err := call(in)
				returned := time.Since(began).Nanoseconds()
				last = &out
				mu.Lock()
				history = append(history, porcupine.Operation{
					ClientId: i, Input: in, Output: last, Call: called, Return: returned,
				})
				if err != nil {
					errs = append(errs, fmt.Errorf("client %d: %+v: %w", i, in, err))
				}
				mu.Unlock()
			}
		})
	}
	close(start)
	wg.Wait()
	return history, errors.Join(errs...)
}

// checkHistory looks for an order of the calls that one caller at a time could have made. If there is none, it writes a
// page that shows the shortest beginning of the history without an order.
func checkHistory[S comparable, I, O any](t *testing.T, name string, m linearModel[S, I, O],
	history []porcupine.Operation,
) bool {
	t.Helper()
	parts := [][]porcupine.Operation{history}
	if m.parts != nil {
		parts = m.parts(history)
	}
	for _, part := range parts {
		end, err := m.order(part)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return false
		}
		if end < 0 {
			continue
		}
		short := m.beginning(part, end)
		_, info := porcupine.CheckOperationsVerbose(m.porcupine(), short, linearLimit)
		page := filepath.Join(os.TempDir(), "tank-"+name+".html")
		err = porcupine.VisualizePath(m.porcupine(), info, page)
		t.Errorf("%s: no order of the calls explains the results: %s (%v)", name, page, err)
		for _, op := range short {
			t.Logf("%8d-%8d µs  client %2d  %s", op.Call/1000, op.Return/1000, op.ClientId,
				m.describe(op.Input.(I), op.Output.(*O)))
		}
		return false
	}
	return true
}

// order looks for an order of the calls. If there is none, it returns the moment at which the shortest
// beginning without an order ends; otherwise -1.
//
// It follows the history in time and keeps every pair of a state and the set of calls that have happened and not yet
// returned ("just-in-time linearization"). A call that only observes happens as soon as its result fits, because every
// later order remains possible. porcupine's search, which goes in depth, does not end on histories of this size within
// minutes.
func (m linearModel[S, I, O]) order(history []porcupine.Operation) (end int64, err error) {
	type event struct {
		at   int64
		op   int
		call bool
	}
	var events []event
	for i, op := range history {
		events = append(events, event{op.Call, i, true}, event{op.Return, i, false})
	}
	sort.Slice(events, func(i, j int) bool {
		a, b := events[i], events[j]
		return a.at < b.at || a.at == b.at && a.call && !b.call
	})
	slots := make([]int, len(history)) // the bit of each call that has begun and not returned
	var pending [64]int                // the call of each bit, from 1; 0 is none
	configs := map[config[S]]bool{{state: m.initial}: true}
	for _, e := range events {
		if e.call {
			slot := slices.Index(pending[:], 0)
			if slot < 0 {
				return 0, errors.New("more than 64 calls at once")
			}
			slots[e.op], pending[slot] = slot, e.op+1
			continue
		}
		if configs, err = m.returned(configs, history, &pending, slots[e.op]); err != nil {
			return 0, err
		}
		if len(configs) == 0 {
			return e.at, nil
		}
		pending[slots[e.op]] = 0
	}
	return -1, nil
}

// config is a state, with the calls that have happened and not returned.
type config[S comparable] struct {
	state S
	done  uint64
}

// maxConfigs bounds the memory and the time of order.
const maxConfigs = 2_000_000

// returned returns what is possible after the call of a slot has returned.
func (m linearModel[S, I, O]) returned(configs map[config[S]]bool, history []porcupine.Operation, pending *[64]int,
	slot int,
) (map[config[S]]bool, error) {
	after := map[config[S]]bool{}
	seen := map[config[S]]bool{}
	var todo []config[S]
	for c := range configs {
		todo = append(todo, c)
	}
	for len(todo) > 0 {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if c.done&(1<<slot) != 0 {
			c.done &^= 1 << slot
			after[c] = true
			continue
		}
		if seen[c] {
			continue
		}
		if seen[c] = true; len(seen) > maxConfigs {
			return nil, errors.New("too many orders are possible")
		}
		var next []config[S]
		for bit, op := range pending {
			if op == 0 || c.done&(1<<bit) != 0 {
				continue
			}
			call, result := history[op-1].Input.(I), history[op-1].Output.(*O)
			states := m.next(c.state, call, result)
			done := c.done | 1<<bit
			if len(states) > 0 && m.observes(call, result) {
				next = []config[S]{{c.state, done}}
				break
			}
			for _, s := range states {
				next = append(next, config[S]{s, done})
			}
		}
		todo = append(todo, next...)
	}
	return after, nil
}

// beginning returns the calls that began until the moment end. Those that have not returned by then have no result.
func (m linearModel[S, I, O]) beginning(history []porcupine.Operation, end int64) []porcupine.Operation {
	sort.Slice(history, func(i, j int) bool { return history[i].Call < history[j].Call })
	var some []porcupine.Operation
	for _, op := range history {
		if op.Call > end {
			continue
		}
		if op.Return > end {
			op.Output, op.Return = (*O)(nil), end+1
		}
		some = append(some, op)
	}
	return some
}

// errorClass returns the class of an error of a service, "" for nil. Other classes than those of a model are errors.
func errorClass(err error) (string, error) {
	switch {
	case err == nil:
		return "", nil
	case errdefs.IsNotFound(err):
		return "not found", nil
	case errdefs.IsAlreadyExists(err):
		return "exists", nil
	case errdefs.IsFailedPrecondition(err):
		return "failed precondition", nil
	case errdefs.IsInvalidArgument(err):
		return "invalid", nil
	case errdefs.IsUnavailable(err):
		return "unavailable", nil
	case errdefs.IsAborted(err):
		return "aborted", nil
	}
	return "", err
}
