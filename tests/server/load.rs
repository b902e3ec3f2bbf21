use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use super::*;

fn post(body: &Value) -> Vec<u8> {
    client::request("POST", "/v1/completions", &[JSON], body.to_string().as_bytes())
}

/// Sends a request and leaves the connection open.
fn begin(server: &Server, body: &Value) -> std::net::TcpStream {
    let mut stream = client::connect(server.address);
    stream.write_all(&post(body)).unwrap();
    stream
}

fn is_idle(server: &Server) -> bool {
    server.metric("trimtab_running_searches") + server.metric("trimtab_queue_searches") == 0.0
}

/// Goal: 500 clients at once are all answered, each as if it had been alone.
#[test]
fn five_hundred_clients_at_once_are_answered_as_if_alone() {
    let server = Server::start(&[]);
    let body = |i: usize| {
        let search = match i % 4 {
            0 => json!({ "beam_width": 1 + i % 3, "successors": 2, "chunk_len": 1 + i % 7 }),
            1 => json!({ "method": "sample" }),
            2 => json!({ "method": "bon", "successors": 1 + i % 5 }),
            _ => json!({}),
        };
        json!({ "prompt": format!("The film {}", i % 20), "seed": i % 20, "max_tokens": 5 + i % 20, "search": search })
    };
    let before = server.pages_free();
    let connections: Vec<_> = (0..500).map(|i| begin(&server, &body(i))).collect();
    let answers: Vec<Answer> = connections.into_iter().map(client::answer).collect();
    assert!(answers.iter().all(|answer| answer.status == 200));
    for i in (0..500).step_by(17) {
        assert_eq!(answers[i].json()["choices"], server.complete(&body(i))["choices"], "{i}");
    }
    server.wait_until("pages come back", |server| server.pages_free() == before);
}

/// Goal: who hangs up, before the answer or amid a stream, is cancelled, and the pages are free.
#[test]
fn hanging_up_cancels() {
    let server = Server::start(&["--concurrency", "2"]);
    let before = server.pages_free();
    let cancelled = "trimtab_searches_total{result=\"cancelled\"}";
    let mut body = long_search("The film");
    body["n"] = 8.into();
    let waiting = begin(&server, &body);
    server.wait_until("it runs", |server| server.metric("trimtab_running_searches") == 2.0);
    assert!(server.pages_free() < before);
    waiting.shutdown(Shutdown::Both).unwrap();
    server.wait_until("it is cancelled", is_idle);
    assert_eq!((server.pages_free(), server.metric(cancelled)), (before, 8.0));

    body["stream"] = true.into();
    body["search"]["trace"] = true.into();
    let mut streaming = begin(&server, &body);
    streaming.read_exact(&mut [0; 2000]).unwrap();
    drop(streaming);
    server.wait_until("the stream is cancelled", is_idle);
    assert_eq!(server.pages_free(), before);
    assert!(server.metric(cancelled) > 8.0);
    // Status 499 is for the books: nobody was there to see it.
    assert_eq!(
        server.metric("trimtab_requests_total{path=\"/v1/completions\",status=\"499\"}"),
        1.0
    );
}

/// Goal: a full queue says when to come back, counted by candidates, and what could never wait is
/// refused at once.
#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Server::start(&["--concurrency", "1", "--queue", "300"]);
    let running = begin(&server, &long_search("One"));
    server.wait_until("one runs", |server| server.metric("trimtab_running_searches") == 1.0);
    let waiting = begin(&server, &long_search("Two"));
    server.wait_until("one waits", |server| server.metric("trimtab_queue_candidates") == 256.0);
    let refused = client::answer(begin(&server, &long_search("Three")));
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    // 44 candidates still fit.
    let small = json!({ "prompt": "x", "max_tokens": 2, "search": { "beam_width": 11 } });
    let small = begin(&server, &small);
    let mut never = long_search("Never");
    never["n"] = 2.into();
    let never = client::answer(begin(&server, &never));
    assert_eq!((never.status, never.param()), (400, json!("n")));
    for stream in [running, waiting, small] {
        assert_eq!(client::answer(stream).status, 200);
    }
}

/// Goal: a request that takes too long is told so, also amid a stream, and makes room.
#[test]
fn requests_that_take_too_long_are_ended() {
    let server = Server::start(&["--timeout", "1", "--concurrency", "1"]);
    let mut body = long_search("The film");
    body["n"] = 60.into();
    let whole = begin(&server, &body);
    assert_eq!(client::answer(whole).status, 504);
    server.wait_until("it is gone", is_idle);
    body["stream"] = true.into();
    let stream = client::answer(begin(&server, &body));
    assert_eq!(stream.status, 200);
    let text = stream.text();
    let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "timeout", "a cut stream must not look like a whole one");
    server.wait_until("it is gone", is_idle);
}

/// Goal: SIGTERM lets everybody who was taken finish, refuses the others, and ends with 0.
#[test]
fn a_signal_lets_the_last_ones_finish() {
    let server = Server::start(&["--concurrency", "4"]);
    let expected = server.complete(&long_search("The film"))["choices"].clone();
    let whole: Vec<_> = (0..6).map(|_| begin(&server, &long_search("The film"))).collect();
    let mut body = long_search("The film");
    body["stream"] = true.into();
    let stream = begin(&server, &body);
    let all = |server: &Server| {
        let (running, waiting) = ("trimtab_running_searches", "trimtab_queue_searches");
        server.metric(running) + server.metric(waiting) == 7.0
    };
    server.wait_until("all were taken", all);
    server.signal("-TERM");
    server.wait_until("it drains", |server| server.get("/ready").status == 503);
    let late = server.post("/v1/completions", &json!({ "prompt": "x" }));
    assert_eq!((late.status, late.header("retry-after")), (503, Some("1")));
    assert_eq!(server.get("/health").status, 200);
    for stream in whole {
        let answer = client::answer(stream);
        assert_eq!((answer.status, &answer.json()["choices"]), (200, &expected));
    }
    let text: String = client::answer(stream)
        .events()
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, expected[0]["text"].as_str().unwrap());
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Goal: a second signal stops at once, whoever is still waiting.
#[test]
fn a_second_signal_stops_at_once() {
    let server = Server::start(&["--concurrency", "1"]);
    let mut body = long_search("The film");
    body["n"] = 60.into();
    let _waiting = begin(&server, &body);
    server.wait_until("it runs", |server| server.metric("trimtab_running_searches") == 1.0);
    server.signal("-TERM");
    server.wait_until("it drains", |server| server.get("/ready").status == 503);
    server.signal("-INT");
    assert_eq!(server.end().0, Some(0));
}

/// Goal: slow, silent and broken clients disturb nobody.
#[test]
fn slow_and_broken_clients_disturb_nobody() {
    let server = Server::start(&["--max-connections", "40"]);
    let bytes = post(&json!({ "prompt": "The film", "seed": 1, "max_tokens": 5 }));
    let expected = client::send(server.address, &bytes).json()["choices"].clone();
    let silent: Vec<_> = (0..10).map(|_| client::connect(server.address)).collect();
    let mut slow: Vec<_> = (0..10).map(|_| client::connect(server.address)).collect();
    // A byte at a time, all of them in turn.
    for part in bytes.chunks(bytes.len().div_ceil(40)) {
        for stream in &mut slow {
            stream.write_all(part).unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"GET / HTTP/9.9\r\n\r\n",
    ];
    for bytes in garbage {
        let mut stream = client::connect(server.address);
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    for stream in slow {
        assert_eq!(client::answer(stream).json()["choices"], expected);
    }
    // A keep-alive connection takes several requests.
    let mut stream = client::connect(server.address);
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut rest = [0; 1024];
        let _ = stream.read(&mut rest).unwrap();
    }
    assert_eq!(client::send(server.address, &bytes).json()["choices"], expected);
    drop(silent);
}

/// A repeatable number below `n`.
fn random(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

/// Goal: whatever clients do, all pages come back and memory does not grow. `TRIMTAB_SOAK_SECONDS`
/// makes it as long as one likes.
#[test]
fn a_soak_ends_as_it_began() {
    let seconds = std::env::var("TRIMTAB_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    let seconds: u64 = seconds.unwrap_or(6);
    let server = Server::start(&["--queue", "2000", "--timeout", "5"]);
    let before = server.pages_free();
    let resident = |server: &Server| -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    let run = |seconds: f64, salt: u64| {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        thread::scope(|scope| {
            for client in 0..8 {
                let server = &server;
                scope.spawn(move || {
                    let mut state = salt * 100 + client;
                    while Instant::now() < until {
                        one_of_many(server, &mut state);
                    }
                });
            }
        });
        server.wait_until("all is quiet", is_idle);
        assert_eq!(server.pages_free(), before, "pages were lost");
        resident(&server)
    };
    let warm = run(seconds as f64 / 2.0, 1);
    let after = run(seconds as f64 / 2.0, 2);
    assert!(after < warm * 1.2 + 20_000.0, "memory grew from {warm} to {after} kB");
    for reserved in ["base-0", "guide-0"] {
        assert_eq!(server.metric(&format!("trimtab_pages_reserved{{pool=\"{reserved}\"}}")), 0.0);
    }
    let done = server.metric("trimtab_searches_total{result=\"done\"}");
    let cancelled = server.metric("trimtab_searches_total{result=\"cancelled\"}");
    assert!(done > 0.0 && cancelled > 0.0, "{done} done, {cancelled} cancelled");
    println!("{done} searches done, {cancelled} cancelled, {after} kB resident");
}

/// A client of the soak: it asks something, and perhaps it waits for the answer.
fn one_of_many(server: &Server, state: &mut u64) {
    let stream = random(state, 2) == 0;
    let prompts = ["The film", "It", "é 你好", "Nothing in this"];
    let body = json!({
        "prompt": prompts[random(state, 4) as usize],
        "seed": random(state, 1000),
        "n": 1 + random(state, 2),
        "max_tokens": 1 + random(state, 60),
        "stream": stream,
        "search": {
            "beam_width": 1 + random(state, 6),
            "successors": 1 + random(state, 6),
            "chunk_len": 1 + random(state, 12),
            "trace": random(state, 2) == 0,
        },
    });
    let mut connection = begin(server, &body);
    match random(state, 4) {
        0 => drop(connection),
        1 => {
            thread::sleep(Duration::from_millis(random(state, 30)));
            let _ = connection.set_read_timeout(Some(Duration::from_millis(20)));
            let _ = connection.read(&mut [0; 100]);
        }
        _ => {
            let answer = client::answer(connection);
            assert!([200, 429, 504].contains(&answer.status), "{}", answer.text());
        }
    }
}
