package download

import (
	"errors"
	"net"
	"net/http"

	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// refusesRange reports whether err, the error of a request for a range, is a status with which a
// server or a firewall refuses ranges. The caller then repeats the request without a range. A
// status that does not depend on the range, or that asks for another attempt, does not count.
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

// mayRefuseRange reports whether err, with which all attempts of a request for a range ended, may
// mean that ranges are refused: the connection was cut, or a gateway reported an error. A failed
// dial does not depend on the range, and a server that asks for a wait gets no further request.
func mayRefuseRange(err error) bool {
	var op *net.OpError
	return retry.IsTemporary(err) && !retry.AsksToWait(err) && !(errors.As(err, &op) && op.Op == "dial")
}
