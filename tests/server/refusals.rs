use super::*;

/// Goal: whatever is wrong with a request is said by the field's name, and nothing is ignored.
#[test]
fn bad_fields_are_refused_by_name() {
    let server = Server::start(&["--max-prompt", "1000"]);
    let long = "x".repeat(1001);
    let deep = "[".repeat(1000);
    for (field, value, part) in [
        ("surprise", json!(null), "not a field"),
        ("prompt", json!(3), "must be a string or a list of strings"),
        ("prompt", json!([]), "must not be empty"),
        ("prompt", json!([1, 2]), "token ids"),
        ("prompt", json!([[1, 2]]), "token ids"),
        ("prompt", json!(long), "has 1001 bytes"),
        ("prompt", json!(["good", long]), "has 1001 bytes"),
        ("prompt", json!("word ".repeat(150)), "context holds 128 tokens"),
        ("prompt", json!(""), "empty"),
        ("model", json!("gpt-5"), "not served here"),
        ("messages", json!([]), "not a field of /v1/completions"),
        ("max_completion_tokens", json!(5), "not a field of /v1/completions"),
        ("max_tokens", json!(0), "at least 1"),
        ("max_tokens", json!(-1), "expected a whole number, not negative"),
        ("max_tokens", json!(5000), "at most 4096"),
        ("max_tokens", json!("5"), "is wrong"),
        ("temperature", json!(-0.1), "from 0 upwards"),
        ("temperature", json!("warm"), "expected a number"),
        ("temperature", json!(1e300), "from 0 upwards"),
        ("top_p", json!(0), "above 0"),
        ("top_p", json!(1.1), "at most 1"),
        ("top_k", json!(-1), "is wrong"),
        ("n", json!(0), "at least 1"),
        ("n", json!(129), "at most 128"),
        ("seed", json!(-1), "is wrong"),
        ("seed", json!(1.5), "is wrong"),
        ("stop", json!(""), "must not be empty"),
        ("stop", json!(7), "string or a list"),
        ("stop", json!(vec!["x"; 17]), "at most 16"),
        ("stream", json!("yes"), "is wrong"),
        ("stream_options", json!({ "include_usage": true }), "without `stream`"),
        ("logprobs", json!(1), "log-probabilities are not kept"),
        ("top_logprobs", json!(2), "log-probabilities are not kept"),
        ("echo", json!(true), "not supported"),
        ("suffix", json!("x"), "not supported"),
        ("best_of", json!(2), "not supported"),
        ("frequency_penalty", json!(0.5), "not supported"),
        ("presence_penalty", json!(-0.5), "not supported"),
        ("logit_bias", json!({ "5": 1 }), "not supported"),
        ("response_format", json!({ "type": "json_object" }), "not supported"),
        ("tools", json!([{}]), "not supported"),
        ("tool_choice", json!("auto"), "not supported"),
        ("user", json!("me"), "not a field"),
    ] {
        let mut body = json!({ "prompt": "The film" });
        body[field] = value;
        let answer = server.post("/v1/completions", &body);
        let status = if field == "model" { 404 } else { 400 };
        assert_eq!((answer.status, answer.param()), (status, json!(field)), "{}", answer.text());
        assert!(answer.message().contains(part), "{part:?} is not in {}", answer.message());
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    for (field, value, part) in [
        ("width", json!(2), "not a field"),
        ("method", json!("magic"), "is wrong"),
        ("method", json!("eft"), "--method eft"),
        ("beam_width", json!(0), "at least 1"),
        ("beam_width", json!(65), "at most 256"),
        ("successors", json!(0), "at least 1"),
        ("chunk_len", json!(0), "at least 1"),
        ("chunk_len", json!("long"), "number or \"inf\""),
        ("trace", json!(1), "is wrong"),
    ] {
        let mut body = json!({ "prompt": "The film", "search": {} });
        body["search"][field] = value;
        let answer = server.post("/v1/completions", &body);
        let param = json!(format!("search.{field}"));
        assert_eq!((answer.status, answer.param()), (400, param), "{}", answer.text());
        assert!(answer.message().contains(part), "{part:?} is not in {}", answer.message());
    }
    let sample = json!({ "prompt": "x", "search": { "method": "sample", "chunk_len": 4 } });
    let answer = server.post("/v1/completions", &sample);
    assert_eq!(answer.message(), "`search.chunk_len` has no meaning with `search.method` sample");

    let malformed: [&[u8]; 9] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{\"prompt\":\"x\"} {}",
        b"{\"prompt\":\"x\",\"prompt\":\"y\"}",
        b"{\"prompt\":\"\\ud800\"}",
        b"{\"prompt\":\"\xff\"}",
        deep.as_bytes(),
    ];
    for body in malformed {
        let answer = server.post_bytes("/v1/completions", body);
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(body));
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    // And after all that, the server is as it was.
    server.complete(&json!({ "prompt": "The film" }));
}

/// Goal: values that say nothing are taken, since clients send them unasked.
#[test]
fn fields_that_say_nothing_are_taken() {
    let server = Server::start(&[]);
    let plain = json!({ "prompt": "The film", "seed": 1 });
    let full = json!({
        "prompt": "The film", "seed": 1, "model": "base", "n": 1, "stream": false, "stop": null,
        "max_tokens": null, "temperature": null, "top_p": 1, "logprobs": null, "echo": false,
        "suffix": null, "best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {}, "search": null, "stream_options": null, "tools": [], "tool_choice": "none",
        "response_format": { "type": "text" }, "top_logprobs": 0,
    });
    assert_eq!(server.complete(&plain)["choices"], server.complete(&full)["choices"]);
}

/// Goal: chats and scores are checked as completions are.
#[test]
fn bad_chats_and_scores_are_refused_by_name() {
    let server = Server::start(&[]);
    let user = json!({ "role": "user", "content": "x" });
    for (body, param) in [
        (json!({}), "messages"),
        (json!({ "prompt": "x", "messages": [user] }), "prompt"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "x" }), "messages"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0]"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "name": "y" }] }),
            "messages[0].name",
        ),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (
            json!({ "messages": [user, { "role": "user", "content": [{ "type": "image", "text": "" }] }] }),
            "messages[1].content",
        ),
        (json!({ "messages": [user], "max_tokens": 1, "max_completion_tokens": 1 }), "max_tokens"),
        // The demo's models have no chat template.
        (json!({ "messages": [user] }), "messages"),
    ] {
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!((answer.status, answer.param()), (400, json!(param)), "{}", answer.text());
    }
    let pair = json!({ "prompt": "x", "response": "y" });
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({ "prompt": "x" }), "response"),
        (json!({ "response": "x" }), "prompt"),
        (json!({ "inputs": [] }), "inputs"),
        (json!({ "inputs": vec![&pair; 129] }), "inputs"),
        (json!({ "inputs": [pair], "prompt": "x" }), "inputs"),
        (json!({ "inputs": [pair, { "prompt": 1, "response": "x" }] }), "inputs[1].prompt"),
        (
            json!({ "inputs": [pair, { "prompt": "word ".repeat(200), "response": "x" }] }),
            "inputs[1].prompt",
        ),
        (json!({ "prompt": "x", "response": "word ".repeat(200) }), "prompt"),
        (json!({ "prompt": "x", "response": "y", "seed": 1 }), "seed"),
    ] {
        let answer = server.post("/v1/score", &body);
        assert_eq!((answer.status, answer.param()), (400, json!(param)), "{}", answer.text());
    }
}

/// Goal: keys, paths, methods, types and sizes have their own statuses.
#[test]
fn each_refusal_has_its_status() {
    let server = Server::start(&["--api-key", "secret", "--max-body", "2K"]);
    let body = br#"{"prompt":"The film","max_tokens":3}"#;
    let send = |method, path, headers: &[(&str, &str)], body: &[u8]| {
        client::send(server.address, &client::request(method, path, headers, body))
    };
    let key = ("Authorization", "Bearer secret");
    for wrong in ["Bearer secreT", "Bearer secret2", "Bearer ", "Basic secret", "secret"] {
        let answer = send("POST", "/v1/completions", &[JSON, ("Authorization", wrong)], body);
        assert_eq!(answer.status, 401, "{wrong}");
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(send("GET", "/v1/models", &[], b"").status, 401);
    assert_eq!(send("GET", "/v1/models", &[key], b"").status, 200);
    assert_eq!(send("POST", "/v1/completions", &[JSON, key], body).status, 200);
    for open in ["/", "/health", "/ready", "/metrics"] {
        assert_eq!(send("GET", open, &[], b"").status, 200, "{open}");
    }
    assert_eq!(send("POST", "/v1/completions", &[key], body).status, 415);
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(send("POST", "/v1/completions", &[key, form], body).status, 415);
    let charset = ("Content-Type", "application/json; charset=utf-8");
    assert_eq!(send("POST", "/v1/completions", &[key, charset], body).status, 200);
    assert_eq!(send("GET", "/v1/completions", &[key], b"").status, 405);
    assert_eq!(send("DELETE", "/health", &[], b"").status, 405);
    assert_eq!(send("GET", "/v1/nothing", &[key], b"").status, 404);
    assert_eq!(send("POST", "/v2", &[JSON], body).status, 404);
    let other = send("GET", "/v1/models/other", &[key], b"");
    assert_eq!(
        (other.status, other.json()["error"]["code"].clone()),
        (404, json!("model_not_found"))
    );
    for size in [2049, 20_000, 1_000_000] {
        let answer = send("POST", "/v1/completions", &[JSON, key], &vec![b' '; size]);
        assert_eq!(answer.status, 413, "{size} bytes");
    }
}

/// Goal: flags that cannot work are refused, and so is an address that cannot be listened on.
#[test]
fn bad_flags_are_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flags, part) in [
        (["--port", &port], "cannot listen"),
        (["--queue", "0"], "--queue must be at least 1"),
        (["--timeout", "0"], "--timeout must be at least 1"),
        (["--max-connections", "0"], "--max-connections must be at least 1"),
        (["--api-key", ""], "--api-key must not be empty"),
        (["--host", "nowhere"], "--host"),
        (["--chunk-len", "0"], "--chunk-len must be at least 1"),
    ] {
        let output = trimtab().arg("serve").args(models()).args(flags).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains(part), "{part:?} is not in {errors}");
    }
    let mut command = trimtab();
    command.args(["serve", "--base", "nowhere", "--method", "sample", "--port", "0"]);
    let status = command.stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2), "models that are not there end the server");
}
