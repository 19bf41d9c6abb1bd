package download

import (
	"errors"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"net"
	"net/http"
)

// refusesRange reports whether err, the outcome of a request for a range, is a status that a server or a firewall
// without ranges may answer. Such a request is made once more without a range. Statuses that any request would get are
// not among them, nor those that ask for another try.
func refusesRange(err error) bool {
	status, ok := httperror.StatusCode(err)
	if !ok {
		return false
	}
	switch status {
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestTimeout, http.StatusGone,
		http.StatusTooEarly, http.StatusTooManyRequests, http.StatusUnavailableForLegalReasons:
		return false
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return true
	}
	return status < http.StatusInternalServerError
}

// mayRefuseRange reports whether err, which all tries of a range ended with, may be how a range is refused: the
// connection was cut, or a gateway reported a fault. A connection that was not made proves nothing about ranges, and a
// server that asks to wait is not asked for more.
func mayRefuseRange(err error) bool {
	var op *net.OpError
	return retry.IsTemporary(err) && !retry.AsksToWait(err) && !(errors.As(err, &op) && op.Op == "dial")
}
