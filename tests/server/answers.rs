use super::*;

/// What `trimtab search` answers.
fn search(models: &[String], flags: &[&str]) -> Value {
    let output = trimtab().arg("search").args(models).args(flags).arg("--json").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Text, reason and score of each choice of a stream, and its usage.
fn collect(events: &[Value]) -> (Vec<(String, Value, Value)>, Value) {
    let mut choices: Vec<(String, Value, Value)> = Vec::new();
    let mut usage = Value::Null;
    for event in events {
        if let Some(counted) = event.get("usage") {
            usage = counted.clone();
        }
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            choices.resize_with(choices.len().max(index + 1), Default::default);
            let collected = &mut choices[index];
            assert!(collected.1.is_null(), "nothing comes after the end");
            let text = choice.get("text").or(choice["delta"].get("content"));
            collected.0 += text.and_then(Value::as_str).unwrap_or_default();
            collected.1 = choice["finish_reason"].clone();
            if !collected.1.is_null() {
                collected.2 = choice["trimtab"].clone();
            }
        }
    }
    (choices, usage)
}

/// Goal: the server's answer is the command line's, with the same settings.
#[test]
fn answers_are_those_of_the_command_line() {
    let server = Server::start(&["-w", "2", "--top-k", "40"]);
    for (body, flags) in [
        (json!({}), vec![]),
        (json!({ "search": { "beam_width": 3, "chunk_len": 4 } }), vec!["-w", "3", "-l", "4"]),
        (json!({ "search": { "method": "sample" } }), vec!["--method", "sample"]),
        (json!({ "search": { "method": "bon" } }), vec!["--method", "bon"]),
        (
            json!({ "search": { "chunk_len": "inf" }, "top_p": 0.5 }),
            vec!["-l", "inf", "--top-p", "0.5"],
        ),
        (
            json!({ "temperature": 0, "max_tokens": 9 }),
            vec!["--temperature", "0", "--max-new-tokens", "9"],
        ),
        (
            json!({ "stop": [".", " a"], "top_k": 0 }),
            vec!["--stop", ".", "--stop", " a", "--top-k", "0"],
        ),
    ] {
        let mut body = body;
        (body["prompt"], body["seed"]) = ("The film".into(), 7.into());
        let mut flags = flags;
        if !["-w", "--method"].iter().any(|flag| flags.contains(flag)) {
            flags.extend(["-w", "2"]);
        }
        if !flags.contains(&"--top-k") {
            flags.extend(["--top-k", "40"]);
        }
        flags.extend(["--prompt", "The film", "--seed", "7"]);
        let expected = search(&models(), &flags);
        let answer = server.complete(&body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], expected["response"], "{flags:?}");
        assert_eq!(choice["finish_reason"], expected["finish_reason"]);
        let own = [
            "gain",
            "logp_tuned",
            "logp_untuned",
            "tokens",
            "eos",
            "stop_reason",
            "method",
            "seed",
        ];
        for field in own {
            assert_eq!(choice["trimtab"][field], expected[field], "{field} of {flags:?}");
        }
        assert_eq!(answer["usage"]["completion_tokens"], expected["tokens"]);
        assert_eq!(
            (&answer["object"], &answer["model"]),
            (&json!("text_completion"), &json!("base"))
        );
    }
}

/// Goal: an answer's token ids come where they are asked for, whole and at the end of a stream: those that the
/// command line writes.
#[test]
fn token_ids_come_where_they_are_asked_for() {
    let server = Server::start(&["-w", "2"]);
    let flags = ["--prompt", "The film", "--seed", "7", "-w", "2", "--token-ids"];
    let expected = &search(&models(), &flags)["token_ids"];
    assert!(expected.is_array());
    let mut body = json!({ "prompt": "The film", "seed": 7, "search": { "token_ids": true } });
    assert_eq!(&server.complete(&body)["choices"][0]["trimtab"]["token_ids"], expected);
    body["stream"] = true.into();
    let streamed = collect(&server.post("/v1/completions", &body).events()).0;
    assert_eq!(&streamed[0].2["token_ids"], expected);
    body = json!({ "prompt": "The film", "seed": 7, "search": { "token_ids": false } });
    assert!(server.complete(&body)["choices"][0]["trimtab"].get("token_ids").is_none());
}

/// Goal: a stream's pieces make up the whole answer, whatever the settings, the stop strings and
/// the characters, and its steps are the whole answer's steps.
#[test]
fn streams_equal_whole_answers() {
    let server = Server::start(&[]);
    let searches = [
        json!({}),
        json!({ "method": "sample" }),
        json!({ "method": "bon", "successors": 5 }),
        json!({ "beam_width": 2, "successors": 3, "chunk_len": 1 }),
        json!({ "beam_width": 1, "chunk_len": 2 }),
    ];
    let mut pieces = 0;
    for search in searches {
        for prompt in ["The film", "é 你好 🎬", "\u{0}\u{202e}\u{feff}\n"] {
            for temperature in [0.7, 2.5] {
                let mut body = json!({
                    "prompt": [prompt, "It"], "n": 2, "seed": 3, "search": search,
                    "temperature": temperature, "top_k": 0, "stop": ["ing", " the f"],
                });
                body["search"]["trace"] = true.into();
                let whole = server.complete(&body);
                body["stream"] = true.into();
                body["stream_options"] = json!({ "include_usage": true });
                let answer = server.post("/v1/completions", &body);
                assert_eq!(answer.header("content-type"), Some("text/event-stream"));
                let events = answer.events();
                let (choices, usage) = collect(&events);
                assert_eq!((usage, choices.len()), (whole["usage"].clone(), 4));
                for (index, (text, reason, own)) in choices.iter().enumerate() {
                    let choice = &whole["choices"][index];
                    assert_eq!(
                        (text.as_str(), reason),
                        (choice["text"].as_str().unwrap(), &choice["finish_reason"])
                    );
                    assert_eq!(own["gain"], choice["trimtab"]["gain"]);
                    assert!(["ing", " the f"].iter().all(|stop| !text.contains(stop)));
                    let mine = |event: &&Value| event["choices"][0]["index"] == index;
                    let chunks = events.iter().filter(mine).flat_map(|event| {
                        event["choices"][0]["trimtab"]["chunks"]
                            .as_array()
                            .cloned()
                            .unwrap_or_default()
                    });
                    let chunks: Value = chunks.collect();
                    assert_eq!(chunks, choice["trimtab"]["chunks"]);
                    pieces += events.iter().filter(mine).count();
                }
            }
        }
    }
    assert!(pieces > 5 * 3 * 2 * 4 * 2, "answers came whole");
}

/// Goal: a chat is rendered by each model's own template, and streams like a completion.
#[test]
fn chats_use_the_models_own_templates() {
    let (_folder, models) = chat_models();
    let server = Server::start_with(&models, &[]);
    let mut body = json!({
        "model": "base", "seed": 5, "max_completion_tokens": 20,
        "messages": [
            { "role": "system", "content": "Be kind." },
            { "role": "user", "content": [{ "type": "text", "text": "The " }, { "type": "text", "text": "film" }] },
        ],
        "n": 2,
    });
    let whole = server.post("/v1/chat/completions", &body).json();
    assert_eq!(whole["object"], "chat.completion");
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    // The guide reads something else before the response than the base does.
    let response = message["content"].as_str().unwrap();
    let scored = server.post("/v1/score", &json!({ "prompt": "Review: Be kind. The film", "response": response, "eos": whole["choices"][0]["finish_reason"] == "stop" }));
    let difference = scored.json()["data"][0]["gain"].as_f64().unwrap()
        - whole["choices"][0]["trimtab"]["gain"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6, "{difference}");

    body["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &body).events();
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "content": "", "role": "assistant" }));
    for (index, (text, reason, _)) in collect(&events).0.into_iter().enumerate() {
        let choice = &whole["choices"][index];
        assert_eq!(
            (json!(text), &reason),
            (choice["message"]["content"].clone(), &choice["finish_reason"])
        );
    }
}

/// Goal: n answers are those of n seeds, each prompt has its own, and without a seed no two
/// requests are alike.
#[test]
fn answers_differ_by_their_seeds() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": ["The film", "It is"], "n": 3, "seed": 11, "max_tokens": 12 });
    let answer = server.complete(&body);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        let (prompt, seed) = (&body["prompt"][index / 3], 11 + index % 3);
        let alone = server.complete(&json!({ "prompt": prompt, "seed": seed, "max_tokens": 12 }));
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], alone["choices"][0]["text"]);
        assert_eq!(choice["trimtab"]["seed"], seed);
    }
    let sum: u64 = choices.iter().map(|choice| choice["trimtab"]["tokens"].as_u64().unwrap()).sum();
    assert_eq!(answer["usage"]["completion_tokens"], sum);

    let seedless = json!({ "prompt": "The film", "max_tokens": 12 });
    let first = server.complete(&seedless);
    let named = first["choices"][0]["trimtab"]["seed"].clone();
    assert_ne!(named, server.complete(&seedless)["choices"][0]["trimtab"]["seed"]);
    let mut again = seedless;
    again["seed"] = named;
    assert_eq!(server.complete(&again)["choices"][0]["text"], first["choices"][0]["text"]);
}

/// Goal: scores are those of `trimtab score`, one by one and together, and of the search itself.
#[test]
fn scores_are_those_of_the_command_line() {
    let server = Server::start(&[]);
    let pairs = [
        json!({ "prompt": "The film", "response": " is a delight.", "eos": true }),
        json!({ "prompt": "The film", "response": "s are é 你好 🎬" }),
        json!({ "prompt": "The film", "response": "" }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, pairs.each_ref().map(|pair| format!("{pair}\n")).concat()).unwrap();
    let mut command = trimtab();
    command.arg("score").args(&models()[2..]).arg("--input").arg(&path);
    let output: Output = command.output().unwrap();
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let together = server.post("/v1/score", &json!({ "model": "base", "inputs": pairs })).json();
    assert_eq!(together["object"], "list");
    for (index, (pair, line)) in pairs.iter().zip(&lines).enumerate() {
        let alone = server.post("/v1/score", pair).json()["data"][0].clone();
        for scored in [&together["data"][index], &alone] {
            for field in ["logp_tuned", "logp_untuned", "gain", "tokens"] {
                assert_eq!(scored[field], line[field], "{field} of {pair}");
            }
        }
    }
    let answer = server.complete(&json!({ "prompt": "The film", "seed": 2 }))["choices"][0].clone();
    let eos = answer["finish_reason"] == "stop";
    let pair = json!({ "prompt": "The film", "response": answer["text"], "eos": eos });
    let scored = server.post("/v1/score", &pair).json()["data"][0]["gain"].as_f64().unwrap();
    assert!((scored - answer["trimtab"]["gain"].as_f64().unwrap()).abs() < 1e-6);
}

/// Goal: a server started for emulated fine-tuning answers so; one without a guide only samples.
#[test]
fn other_kinds_of_servers_say_what_they_are() {
    let eft = Server::start(&["--method", "eft", "--beta", "0.5"]);
    let flags = ["--prompt", "The film", "--method", "eft", "--beta", "0.5", "--seed", "4"];
    let answer = eft.complete(&json!({ "prompt": "The film", "seed": 4 }));
    assert_eq!(answer["choices"][0]["text"], search(&models(), &flags)["response"]);
    let other =
        eft.post("/v1/completions", &json!({ "prompt": "x", "search": { "method": "cbs" } }));
    assert_eq!((other.status, other.param()), (400, json!("search.method")));

    let alone = ["--base".to_owned(), model("base")];
    let alone = Server::start_with(&alone, &["--method", "sample", "--model-name", "m/1"]);
    let answer = alone.complete(&json!({ "model": "m/1", "prompt": "The film", "seed": 4 }));
    assert_eq!(answer["choices"][0]["trimtab"]["gain"], Value::Null);
    let guided =
        alone.post("/v1/completions", &json!({ "prompt": "x", "search": { "method": "cbs" } }));
    assert_eq!((guided.status, guided.param()), (400, json!("search.method")));
    assert_eq!(alone.post("/v1/score", &json!({ "prompt": "x", "response": "y" })).status, 400);
    assert_eq!(alone.get("/v1/models/m/1").json()["id"], "m/1");
}

/// Goal: the small endpoints answer, and the metrics count.
#[test]
fn the_server_tells_about_itself() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/ready").status, 200);
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("base")));
    assert_eq!(server.get("/v1/models/base").json(), list["data"][0]);
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    for asset in ["/page.css", "/page.js"] {
        assert_eq!(server.get(asset).status, 200);
        assert!(page.text().contains(asset), "{asset} is not used");
    }
    let answer = server.complete(&json!({ "prompt": "The film", "n": 2 }));
    server.post("/v1/completions", &json!({}));
    let requests =
        |status| format!("trimtab_requests_total{{path=\"/v1/completions\",status=\"{status}\"}}");
    assert_eq!((server.metric(&requests(200)), server.metric(&requests(400))), (1.0, 1.0));
    assert_eq!(server.metric("trimtab_searches_total{result=\"done\"}"), 2.0);
    let tokens = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert_eq!(server.metric("trimtab_tokens_total{kind=\"answer\"}"), tokens);
    assert_eq!(server.metric("trimtab_gain_count"), 2.0);
    for phase in ["prefill", "expand", "score", "select"] {
        assert!(server.metric(&format!("trimtab_phase_seconds_sum{{phase=\"{phase}\"}}")) > 0.0);
    }
    assert!(server.get("/metrics").text().ends_with("# EOF\n"));
}
