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
