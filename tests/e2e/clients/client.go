// Requests with bodies and cookies of all sizes from 8 goroutines; prints "done", or fails at the first wrong answer.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

func ask(client *http.Client, url string, number int) error {
	size := []int{0, 10, 5000, 150000}[number%4]
	body := bytes.Repeat([]byte{byte(number)}, []int{0, 7, 3000, 90000}[(number>>2)%4])
	path := fmt.Sprintf("/length/%d", size)
	request, err := http.NewRequest("POST", url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if number%3 == 0 {
		request.URL.Opaque = "/a/.." + path // as it is, dots included
	}
	request.Host = "details:9080"
	request.Header.Set("X-Id", fmt.Sprint(number))
	request.Header.Set("Cookie", strings.Repeat("c", []int{1, 500, 6000}[number%3]))
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(body))
	told := response.Header
	if response.StatusCode != 200 || told.Get("X-Id") != fmt.Sprint(number) || told.Get("X-Sha256") != sum {
		return fmt.Errorf("%s: %d %v", path, response.StatusCode, told)
	}
	if got != int64(size) {
		return fmt.Errorf("%s: %d bytes", path, got)
	}
	return nil
}

func main() {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, MaxConnsPerHost: 8}}
	var group sync.WaitGroup
	for first := 0; first < 8; first++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := first; number < 1600; number += 8 {
				if err := ask(client, os.Args[1], number); err != nil {
					fmt.Fprintln(os.Stderr, number, err)
					os.Exit(1)
				}
			}
		}()
	}
	group.Wait()
	client.CloseIdleConnections()
	fmt.Println("done")
}
