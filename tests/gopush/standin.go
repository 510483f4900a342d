// Stands in for either half of go-push, by Go's own net/http: written from what its two halves say to one another.
//
//	go run standin.go gateway            prints its address, then each push: "2 all ITEMS" or "2 room ROOM ITEMS", 2 being HTTP's version
//	go run standin.go logic HOST:PORT    reads "all ITEMS" or "room ROOM ITEMS", posts it, prints HTTP's version, status and length
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"
)

func main() {
	switch os.Args[1] {
	case "gateway":
		gateway()
	case "logic":
		logic(os.Args[2])
	}
}

func gateway() {
	push := func(name string) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			var items []json.RawMessage
			if r.ParseForm() != nil || json.Unmarshal([]byte(r.PostForm.Get("items")), &items) != nil {
				fmt.Println("nonsense")
				return
			}
			line, _ := json.Marshal(items)
			if name == "room" {
				name := r.PostForm.Get("room")
				fmt.Printf("%d room %s %s\n", r.ProtoMajor, name, line)
			} else {
				fmt.Printf("%d all %s\n", r.ProtoMajor, line)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/push/all", push("all"))
	mux.HandleFunc("/push/room", push("room"))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	fmt.Println(server.Listener.Addr())
	io.Copy(io.Discard, os.Stdin) // Ends with whoever started it.
}

func logic(address string) {
	client := http.Client{
		Timeout: 3 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
			ForceAttemptHTTP2: true,
			IdleConnTimeout:   60 * time.Second,
		},
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), " ")
		form := url.Values{}
		if name == "room" {
			room, items, _ := strings.Cut(rest, " ")
			form.Set("room", room)
			rest = items
		}
		form.Set("items", rest)
		for attempt := 1; ; attempt++ {
			response, err := client.PostForm("https://"+address+"/push/"+name, form)
			if err == nil {
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				fmt.Println(response.ProtoMajor, response.StatusCode, len(body))
				break
			}
			if attempt == 3 {
				fmt.Println("lost:", err)
				break
			}
		}
	}
}
