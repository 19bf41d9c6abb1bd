package retry

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

func TestD19RetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"1", time.Second, true},
		{" 2 ", 2 * time.Second, true},
		{"120", 2 * time.Minute, true},
		{"21600", 6 * time.Hour, true},
		{fmt.Sprint(now.Add(6 * time.Hour).Unix()), 6 * time.Hour, true},
		{"1000000000", 0, false}, // in 2001
		{"999999999", 0, false},
		{fmt.Sprint(now.Add(6 * time.Hour).UnixMilli()), 0, false},
		{"9223372036854775807", 0, false},
		{"99999999999999999999999", 0, false},
		{now.Add(5 * time.Second).Format(http.TimeFormat), 5 * time.Second, true},
		{now.Add(time.Hour).Format(http.TimeFormat), time.Hour, true},
		{now.Add(time.Hour).Format(time.RFC850), time.Hour, true},
		{now.Add(-time.Hour).Format(http.TimeFormat), 0, false},
		{"0", 0, false},
		{"-5", 0, false},
		{"1.5", 0, false},
		{"soon", 0, false},
		{"", 0, false},
	} {
		if got, ok := retryAfter(tc.in, now); got != tc.want && ok || ok != tc.ok {
			t.Errorf("%q: %v, %v", tc.in, got, ok)
		}
	}
}
