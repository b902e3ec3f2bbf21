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
        ("max_tokens", json!(5.5), "expected a whole number, not negative"),
        ("max_tokens", json!(1e300), "expected a whole number, not negative"),
        ("top_k", json!(-2), "or -1 for all tokens"),
        ("top_k", json!(1_u64 << 32), "is wrong"),
        ("n", json!(0), "at least 1"),
        ("n", json!(129), "at most 128"),
        ("seed", json!(1.5), "is wrong"),
        ("seed", json!(1e19), "at most 64 bits"),
        ("seed", json!("me"), "is wrong"),
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
        ("functions", json!([{}]), "not supported"),
        ("modalities", json!(["text", "audio"]), "not supported"),
        ("audio", json!({}), "not supported"),
        ("ignore_eos", json!(true), "not supported"),
        ("min_p", json!(0.1), "not supported"),
        ("repetition_penalty", json!(1.1), "not supported"),
        ("search", json!(5), "`search` must be an object"),
        ("search", json!([]), "`search` must be an object"),
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
        ("method", json!("magic"), "unknown value `magic`"),
        ("method", json!("eft"), "--method eft"),
        ("beam_width", json!(0), "at least 1"),
        ("beam_width", json!(65), "at most 256"),
        ("beam_width", json!(1_000_000), "at most 256"),
        ("successors", json!(0), "at least 1"),
        ("chunk_len", json!(0), "at least 1"),
        ("chunk_len", json!("long"), "must be a number or \"inf\""),
        ("chunk_len", json!(2.5), "must be a number or \"inf\""),
        ("chunk_len", json!(-2.0), "must be a number or \"inf\""),
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
    for (body, message) in [
        ("[]", "the body must be an object"),
        ("null", "the body must be an object"),
        ("5", "the body must be an object"),
        ("\"x\"", "the body must be an object"),
        (r#"{"prompt":"x","prompt":"y"}"#, "`prompt` is given twice"),
        (r#"{"n":1,"prompt":"x","n":2}"#, "`n` is given twice"),
        (r#"{"prompt":"x","search":{"trace":true,"trace":true}}"#, "`search.trace` is given twice"),
        (r#"{"messages":{}}"#, "`messages` is wrong: invalid type: object, expected a list"),
        (
            r#"{"seed":[]}"#,
            "`seed` is wrong: invalid type: list, expected a whole number of at most 64 bits",
        ),
    ] {
        let answer = server.post_bytes("/v1/completions", body.as_bytes());
        assert_eq!((answer.status, &*answer.message()), (400, message), "{body}");
    }
    // And after all that, the server is as it was.
    server.complete(&json!({ "prompt": "The film" }));
}

/// Goal: values that say nothing are taken, since clients send them unasked, and so is what only
/// labels or routes a request; the README names all of the latter.
#[test]
fn fields_that_say_nothing_are_taken() {
    let server = Server::start(&[]);
    let plain = server.complete(&json!({ "prompt": "The film", "seed": 1 }))["choices"].clone();
    let with = |field: &str, value: &Value| {
        let mut body = json!({ "prompt": "The film", "seed": 1 });
        body[field] = value.clone();
        assert_eq!(server.complete(&body)["choices"], plain, "{field}: {value}");
    };
    let readme = include_str!("../../README.md");
    for label in [
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    ] {
        for value in [json!(null), json!("me"), json!(true), json!({ "a": [1] })] {
            with(label, &value);
        }
        assert!(readme.contains(&format!("`{label}`")), "the README does not name {label}");
    }
    for (field, value) in [
        ("add_generation_prompt", json!(true)),
        ("bad_words", json!([])),
        ("best_of", json!(1)),
        ("continue_final_message", json!(false)),
        ("echo", json!(false)),
        ("frequency_penalty", json!(0)),
        ("function_call", json!("none")),
        ("functions", json!([])),
        ("ignore_eos", json!(false)),
        ("include_stop_str_in_output", json!(false)),
        ("length_penalty", json!(1)),
        ("logit_bias", json!({})),
        ("logprobs", json!(false)),
        ("min_p", json!(0)),
        ("min_tokens", json!(0)),
        ("modalities", json!(["text"])),
        ("model", json!("base")),
        ("n", json!(1)),
        ("presence_penalty", json!(0.0)),
        ("reasoning_effort", json!("none")),
        ("repetition_penalty", json!(1.0)),
        ("response_format", json!({ "type": "text" })),
        ("search", json!({ "trace": null, "method": null, "chunk_len": null })),
        ("skip_special_tokens", json!(true)),
        ("stop_token_ids", json!([])),
        ("stream", json!(false)),
        ("suffix", json!("")),
        ("tool_choice", json!("none")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", json!(1)),
        ("use_beam_search", json!(false)),
        ("verbosity", json!("medium")),
    ] {
        with(field, &value);
        with(field, &Value::Null);
    }
    for field in [
        "audio",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "prompt_logprobs",
        "stop",
        "stream_options",
        "temperature",
        "top_k",
        "web_search_options",
    ] {
        with(field, &Value::Null);
    }
    for options in [
        json!({ "include_usage": null, "include_obfuscation": false }),
        json!({ "include_obfuscation": null, "continuous_usage_stats": false }),
    ] {
        let body = json!({ "prompt": "The film", "stream": true, "stream_options": options });
        assert!(!server.post("/v1/completions", &body).events().is_empty());
    }
    let obfuscated =
        json!({ "prompt": "x", "stream": true, "stream_options": { "include_obfuscation": true } });
    let answer = server.post("/v1/completions", &obfuscated);
    assert_eq!(answer.param(), json!("stream_options.include_obfuscation"), "{}", answer.text());
}

/// Goal: an assistant's message goes back as the official client dumps it, with all that an answer
/// can carry and this one does not; what it could carry that changes the conversation is refused.
#[test]
fn answers_go_back_as_messages() {
    let (_folder, models) = chat_models();
    let server = Server::start_with(&models, &[]);
    let ask = |assistant: &Value| {
        let user = json!({ "role": "user", "content": "The film", "name": "bob" });
        let body = json!({ "messages": [user, assistant, user], "seed": 1, "max_tokens": 5 });
        server.post("/v1/chat/completions", &body)
    };
    let bare = ask(&json!({ "role": "assistant", "content": "is" })).json()["choices"].clone();
    for empty in [json!(null), json!([])] {
        let answer = ask(&json!({
            "role": "assistant", "content": "is", "refusal": null, "annotations": empty,
            "audio": null, "function_call": null, "tool_calls": empty, "reasoning_content": null,
        }));
        assert_eq!((answer.status, &answer.json()["choices"]), (200, &bare), "{}", answer.text());
    }
    for (field, value) in [
        ("refusal", json!("I will not")),
        ("tool_calls", json!([{}])),
        ("function_call", json!({})),
        ("audio", json!({})),
        ("tool_call_id", json!("7")),
        ("weight", json!(null)),
        ("content", json!(null)),
    ] {
        let mut message = json!({ "role": "assistant", "content": "is" });
        message[field] = value;
        let answer = ask(&message);
        let param = json!(format!("messages[1].{field}"));
        assert_eq!((answer.status, answer.param()), (400, param), "{}", answer.text());
    }
}

/// Goal: numbers come as clients write them: whole ones as floats, all tokens as −1, seeds with a
/// sign.
#[test]
fn numbers_come_as_clients_write_them() {
    let server = Server::start(&[]);
    for (field, one, other) in [
        ("max_tokens", json!(5.0), json!(5)),
        ("seed", json!(7.0), json!(7)),
        ("seed", json!(-1), json!(u64::MAX)),
        ("seed", json!(i64::MIN), json!(1_u64 << 63)),
        ("n", json!(2.0), json!(2)),
        ("top_k", json!(3.0), json!(3)),
        ("top_k", json!(-1), json!(0)),
        (
            "search",
            json!({ "beam_width": 2.0, "successors": 3.0, "chunk_len": 4.0 }),
            json!({ "beam_width": 2, "successors": 3, "chunk_len": 4 }),
        ),
    ] {
        let choices = |value: &Value| {
            let mut body = json!({ "prompt": "The film", "seed": 1, "max_tokens": 9 });
            body[field] = value.clone();
            server.complete(&body)["choices"].clone()
        };
        assert_eq!(choices(&one), choices(&other), "{field}: {one}");
    }
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
        (json!({ "messages": user }), "messages"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (json!({ "messages": ["x"] }), "messages[0]"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "voice": "y" }] }),
            "messages[0].voice",
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
        (json!({ "inputs": [{ "prompt": "x" }] }), "inputs[0].response"),
        (json!({ "inputs": [{ "prompt": "x", "response": "y", "user": "z" }] }), "inputs[0].user"),
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

/// Goal: who asks is told what is wrong with the request, in words of the request: no paths of the
/// server's, no flags that only its owner could set differently.
#[test]
fn errors_are_for_who_asks() {
    let server = Server::start(&[]);
    let user = json!([{ "role": "user", "content": "x" }]);
    let (_folder, models) = chat_models();
    let picky = Path::new(&models[1]).join("chat_template.jinja");
    std::fs::write(picky, "{{ raise_exception('roles must alternate') }}").unwrap();
    let strict = Server::start_with(&models, &[]);
    let elsewhere = ["--base-url", "http://127.0.0.1:9/v1", "--base-model", "m"].map(str::to_owned);
    let remote =
        Server::start_with(&[&elsewhere[..], &models[2..]].concat(), &["--base-retries", "0"]);
    let reference = Server::start(&["--compat", "reference"]);
    let no_template = "the base model has no chat template, which messages need; use \
                       /v1/completions, whose prompts the server puts into a format if it is \
                       started with --base-template and --guide-template";
    for (server, path, body, param, message) in [
        (&server, "/v1/chat/completions", json!({ "messages": user }), "messages", no_template),
        (
            &server,
            "/v1/score",
            json!({ "prompt": user, "response": "y" }),
            "prompt",
            "the guide model has no chat template, which messages need; give the prompt as text",
        ),
        (&remote, "/v1/chat/completions", json!({ "messages": user }), "messages", no_template),
        (
            &reference,
            "/v1/completions",
            json!({ "prompt": "x", "temperature": 0 }),
            "temperature",
            "`temperature` must be above 0 on a server started with --compat reference, where 0 \
             would mean 1; top_k 1 takes the most probable token there too",
        ),
        (
            &strict,
            "/v1/chat/completions",
            json!({ "messages": user }),
            "messages",
            "the base model's chat template failed: roles must alternate (line 1)",
        ),
        (
            &server,
            "/v1/completions",
            json!({ "prompt": "" }),
            "prompt",
            "`prompt` is empty for the base model: give it text",
        ),
    ] {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, answer.param()), (400, json!(param)), "{}", answer.text());
        assert_eq!(answer.message(), message);
    }
    let answer = remote.post("/v1/completions", &json!({ "prompt": "x" }));
    let (status, message) = (answer.status, answer.message());
    // Neither where it is, nor what it said.
    assert_eq!((status, &*message), (502, "the base model's server failed; the log says how"));
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
        (&["--port", &port][..], "cannot listen"),
        (&["--queue", "0"], "--queue must be at least 1"),
        (&["--timeout", "0"], "--timeout must be at least 1"),
        (&["--max-connections", "0"], "--max-connections must be at least 1"),
        (&["--api-key", ""], "--api-key must not be empty"),
        (&["--host", "no where"], "--host \"no where\" has no address"),
        (&["--allow-origin", "example.org"], "must be * or scheme and host"),
        (&["--allow-origin", "https://example.org/"], "without a path"),
        (&["--allow-origin", "https://*.example.org"], "must be * or scheme and host"),
        (&["--chunk-len", "0"], "--chunk-len must be at least 1"),
        (&["--chat"], "has no chat template"),
        (&["--max-new-tokens", "200"], "context holds 128 tokens"),
        // What a request gets that does not say otherwise must not be refused.
        (&["--max-tokens", "20", "--max-new-tokens", "21"], "--max-tokens 20 is less than"),
        (&["--max-tokens", "20", "--max-new-tokens", "21"], "21 (--max-new-tokens)"),
        (&["--max-candidates", "15"], "--max-candidates 15 is less than"),
        (&["--max-candidates", "15"], "16 (--beam-width times --successors, 4 times 4)"),
        (&["--queue", "9", "--method", "bon", "-k", "10"], "--queue 9 is less than"),
    ] {
        let output = trimtab().arg("serve").args(models()).args(flags).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains(part), "{part:?} is not in {errors}");
    }
    let mut command = trimtab();
    command.arg("serve").args(&models()[..6]).args(["--kv-memory", "1M", "--port", "0"]);
    let errors = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(errors.contains("cache pages but the whole cache has"), "{errors}");
    let mut command = trimtab();
    command.args(["serve", "--base", "nowhere", "--method", "sample", "--port", "0"]);
    let status = command.stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2), "models that are not there end the server");
}
