use super::*;

fn send(server: &Server, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    client::send(server.address, &client::request(method, "/v1/completions", headers, body))
}

/// Goal: with --log-requests every request has its line, streams, refusals and scores too, with
/// what it was and what it cost, and nothing of what was asked or answered; without it none has.
#[test]
fn requests_are_logged_without_what_they_say() {
    let server = Server::start(&["--log-requests"]);
    let mut body = json!({ "prompt": ["Secret film"], "n": 2, "seed": 1, "max_tokens": 9 });
    let answer = server.complete(&body);
    body["stream"] = true.into();
    server.post("/v1/completions", &body).events();
    server.post("/v1/completions", &json!({ "prompt": "Secret", "secret": 1 }));
    let pair = json!({ "prompt": "Secret", "response": "ly" });
    server.post("/v1/score", &json!({ "inputs": [pair, pair, pair] }));
    server.get("/health");
    let log = || server.log.lock().unwrap().clone();
    server.wait_until("all are logged", |_| log().matches(" seconds=").count() == 5);
    let count = |field: &str| answer["usage"][field].as_u64().unwrap();
    let (prompt, written) = (count("prompt_tokens"), count("completion_tokens"));
    let written = format!("answers=2 prompt_tokens={prompt} answer_tokens={written} seconds=");
    let expected = [
        format!("trimtab: method=POST path=/v1/completions status=200 {written}"),
        format!("trimtab: method=POST path=/v1/completions status=200 {written}"),
        "trimtab: method=POST path=/v1/completions status=400 answers=0 prompt_tokens=- ".into(),
        "trimtab: method=POST path=/v1/score status=200 answers=3 ".into(),
        "trimtab: method=GET path=/health status=200 answers=0 ".into(),
    ];
    let log = log();
    for (line, expected) in log.lines().zip(expected) {
        assert!(line.starts_with(&expected), "{line:?} is not {expected:?}");
        let seconds: f64 = line.split("seconds=").nth(1).unwrap().parse().unwrap();
        assert!((0.0..60.0).contains(&seconds));
    }
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(!log.to_lowercase().contains("secret") && !log.contains(text), "{log}");

    let silent = Server::start(&[]);
    silent.complete(&body_without_stream(body));
    assert_eq!(silent.get("/health").status, 200);
    let (code, log) = {
        silent.signal("-TERM");
        silent.end()
    };
    assert!(code == Some(0) && !log.contains("method="), "{log}");
}

fn body_without_stream(mut body: Value) -> Value {
    body["stream"] = false.into();
    body
}

/// Goal: pages of the origins that the server was told may ask, with all headers that a client
/// sends, and read refusals too; other pages, and all of them by default, may not.
#[test]
fn pages_of_other_origins_may_ask_where_they_are_allowed() {
    const ALLOWED: &str = "access-control-allow-origin";
    let (here, there) = (("Origin", "https://here.example"), ("Origin", "https://there.example"));
    let asks = ("Access-Control-Request-Method", "POST");
    let headers = ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os");
    let body = br#"{"prompt":"The film","max_tokens":2}"#;

    let closed = Server::start(&[]);
    let preflight = send(&closed, "OPTIONS", &[here, asks], b"");
    assert_eq!((preflight.status, preflight.header(ALLOWED)), (405, None));
    let answer = send(&closed, "POST", &[JSON, here], body);
    assert_eq!((answer.status, answer.header(ALLOWED), answer.header("vary")), (200, None, None));

    let flags =
        ["--allow-origin", "https://HERE.example:443", "--allow-origin", "http://[::1]:3000"];
    let some = Server::start(&[&flags[..], &["--api-key", "secret"]].concat());
    for (origin, allowed) in [
        (here, true),
        (("Origin", "http://[::1]:3000"), true),
        (there, false),
        (("Origin", "http://here.example"), false),
        (("Origin", "https://here.example:8443"), false),
        (("Origin", "https://here.example.evil"), false),
        (("Origin", "null"), false),
    ] {
        let expected = allowed.then_some(origin.1);
        // A browser asks without the key.
        let preflight = send(&some, "OPTIONS", &[origin, asks, headers], b"");
        assert_eq!(preflight.header(ALLOWED), expected, "{origin:?}");
        assert_eq!(preflight.status == 204, allowed, "{origin:?}");
        if allowed {
            assert_eq!(preflight.header("access-control-allow-methods"), Some("GET, POST"));
            assert_eq!(preflight.header("access-control-allow-headers"), Some(headers.1));
        }
        let key = ("Authorization", "Bearer secret");
        for (sent, status) in [(&[JSON, origin, key][..], 200), (&[JSON, origin], 401)] {
            let answer = send(&some, "POST", sent, body);
            assert_eq!((answer.status, answer.header(ALLOWED)), (status, expected), "{origin:?}");
            assert_eq!(answer.header("vary"), Some("Origin"));
        }
    }
    // What is no preflight is a method that is not taken.
    assert_eq!(send(&some, "OPTIONS", &[here], b"").status, 401);

    let all = Server::start(&["--allow-origin", "*"]);
    assert_eq!(send(&all, "OPTIONS", &[there, asks], b"").header(ALLOWED), Some("*"));
    let answer = send(&all, "POST", &[JSON, there], body);
    assert_eq!((answer.status, answer.header(ALLOWED)), (200, Some("*")));
    assert_eq!(answer.header("vary"), None);
}

/// Goal: a host may be named, as a person would.
#[test]
fn a_host_may_be_a_name() {
    let server = Server::start(&["--host", "localhost"]);
    assert!(server.address.ip().is_loopback(), "{}", server.address);
    assert_eq!(server.get("/health").status, 200);
}

/// The bytes of a request with exactly these headers.
fn raw(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [(head + "\r\n").as_bytes(), body].concat()
}

/// Goal: a web page whose name is made to point here (DNS rebinding) gets nothing from a server without a key; a
/// server with a key, or one that is told a name, is asked by that name.
#[test]
fn only_names_of_this_machine_are_taken_without_a_key() {
    let ask = |server: &Server, path: &str, host: &str| {
        client::send(server.address, &raw("GET", path, &[("Host", host)], b""))
    };
    let own = ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"];
    let others = [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "::1",
        "127.0.0.2",
        "localhost:evil",
        "box.example.org",
        "",
    ];
    let server = Server::start(&[]);
    for path in ["/v1/models", "/", "/metrics"] {
        for host in own {
            assert_eq!(ask(&server, path, host).status, 200, "{host} {path}");
        }
        for host in others {
            let answer = ask(&server, path, host);
            assert_eq!(answer.status, 403, "{host} {path}");
            assert!(answer.message().contains("--allow-host"), "{}", answer.text());
            assert_eq!(answer.json()["error"]["code"], "unknown_host");
        }
    }
    let refused = "trimtab_requests_total{path=\"/v1/models\",status=\"403\"}";
    assert_eq!(server.metric(refused), others.len() as f64);

    let named = Server::start(&["--allow-host", "Box.example.org", "--allow-host", "[fe80::1]"]);
    for (host, status) in [
        ("box.example.org:80", 200),
        ("[fe80::1]:80", 200),
        ("localhost", 200),
        ("evil.example", 403),
    ] {
        assert_eq!(ask(&named, "/v1/models", host).status, status, "{host}");
    }
    let keyed = Server::start(&["--api-key", "secret"]);
    assert_eq!(ask(&keyed, "/health", "box.example.org").status, 200);
    for name in ["http://x", "x:80", "", "x/y"] {
        let args = [&["--port", "0", "--allow-host", name][..]].concat();
        let output = trimtab().arg("serve").args(models()).args(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("must be a name or an address"), "{error}");
    }
}

/// Goal: no other page can hold this one in a frame, and none of its parts comes from elsewhere.
#[test]
fn browsers_are_told_what_a_page_may_do() {
    let server = Server::start(&[]);
    for path in ["/", "/page.js", "/page.css", "/v1/models", "/nowhere"] {
        let answer = server.get(path);
        let policy = answer.header("content-security-policy").unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
    }
}

/// Goal: names that have no case in HTTP are read so, and what HTTP forbids or this server cannot read is refused.
#[test]
fn headers_are_read_as_http_has_them() {
    let server = Server::start(&["--api-key", "secret"]);
    let body = br#"{"prompt":"The film","max_tokens":2}"#;
    let (host, json) = (("Host", "localhost"), ("Content-Type", "application/json"));
    let key = ("Authorization", "Bearer secret");
    for (headers, status) in [
        (
            &[
                host,
                ("Content-Type", "Application/JSON; charset=utf-8"),
                ("Authorization", "bearer secret"),
            ][..],
            200,
        ),
        (&[host, json, ("Authorization", "BEARER  secret")], 200),
        (&[host, json, ("Authorization", "Basic secret")], 401),
        (&[host, json, ("Authorization", "Bearersecret")], 401),
        (&[host, json, key, ("Content-Encoding", "Identity")], 200),
        (&[host, json, key, ("Content-Encoding", "gzip")], 415),
        (&[host, json, key, ("Content-Encoding", "identity"), ("Content-Encoding", "br")], 415),
        (&[host, ("Content-Type", "text/json"), key], 415),
        (&[json, key], 400),
        (&[host, host, json, key], 400),
        (&[host, ("Host", "evil.example"), json, key], 400),
    ] {
        let answer = client::send(server.address, &raw("POST", "/v1/completions", headers, body));
        assert_eq!(answer.status, status, "{headers:?} {}", answer.text());
    }
    let old = b"GET /health HTTP/1.0\r\n\r\n";
    assert_eq!(client::send(server.address, old).status, 200, "HTTP/1.0 has no Host");
}

/// Goal: a key can come from a file, where no other user of the machine reads it.
#[test]
fn a_key_may_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let file = path.to_str().unwrap();
    std::fs::write(&path, " secret \r\nnot this\n").unwrap();
    let server = Server::start(&["--api-key-file", file]);
    for (key, status) in [("Bearer secret", 200), ("Bearer not this", 401), ("Bearer ", 401)] {
        let bytes = client::request("GET", "/v1/models", &[("Authorization", key)], b"");
        assert_eq!(client::send(server.address, &bytes).status, status, "{key}");
    }
    let refused = |args: &[&str], part: &str| {
        let flags = [&["serve", "--port", "0"], args].concat();
        let output = trimtab().args(flags).args(models()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(part), "{args:?} {error}");
    };
    refused(&["--api-key-file", file, "--api-key", "other"], "cannot be used with");
    for (content, part) in [
        (&b"\nsecret\n"[..], "is empty"),
        (b"", "is empty"),
        (b"a b", "no header"),
        (b"\xff", "no header"),
    ] {
        std::fs::write(&path, content).unwrap();
        refused(&["--api-key-file", file], part);
    }
    refused(&["--api-key-file", folder.path().join("none").to_str().unwrap()], "is not there");
    refused(&["--api-key-file", folder.path().to_str().unwrap()], "is not a file");
}

/// Goal: one address cannot take all connections.
#[test]
fn an_address_has_no_more_than_its_connections() {
    use std::io::{Read, Write};
    let server = Server::start(&["--max-connections-per-address", "3"]);
    let asks = |stream: &mut std::net::TcpStream| {
        let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut answer = [0; 2048];
        sent.and_then(|()| stream.read(&mut answer)).unwrap_or(0) > 0
    };
    let mut held: Vec<_> = (0..3).map(|_| client::connect(server.address)).collect();
    assert!(held.iter_mut().all(asks));
    assert!(!asks(&mut client::connect(server.address)), "a fourth is closed");
    held.pop();
    let started = Instant::now();
    while !asks(&mut client::connect(server.address)) {
        assert!(started.elapsed() < Duration::from_secs(60), "room is not given back");
    }
    assert!(held.iter_mut().all(asks), "the others are not disturbed");
    assert!(server.log.lock().unwrap().contains("127.0.0.1 has 3 connections"));
}
