use std::io::Write;

use super::*;

/// What `trimtab stdio` writes when it gets this input, and its exit code.
fn output(input: &[u8], flags: &[&str]) -> (String, Option<i32>) {
    let mut command = trimtab();
    command.arg("stdio").args(models()).args(flags);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

/// The same as values.
fn run(input: &[u8], flags: &[&str]) -> (Vec<Value>, Option<i32>) {
    let (text, code) = output(input, flags);
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), code)
}

fn of(lines: &[Value], id: Value) -> Vec<&Value> {
    lines.iter().filter(|line| line["id"] == id).collect()
}

/// Goal: lines are answered as requests over HTTP are, streams too, and the end of the input is
/// the end, once all is answered.
#[test]
fn lines_are_answered_as_requests_are() {
    let server = Server::start(&[]);
    let mut requests = String::new();
    let body = |i: usize| json!({ "prompt": format!("The film {i}"), "seed": i, "max_tokens": 15 });
    for i in 0..40 {
        requests +=
            &format!("{}\n", json!({ "id": i, "path": "/v1/completions", "body": body(i) }));
    }
    let mut streamed = body(3);
    streamed["stream"] = true.into();
    let pair = json!({ "prompt": "The film", "response": " is good" });
    for line in [
        json!({ "id": "stream", "path": "/v1/completions", "body": streamed }),
        json!({ "id": ["score"], "path": "/v1/score", "body": pair }),
        json!({ "id": "models", "path": "/v1/models" }),
        json!({ "id": "metrics", "path": "/metrics" }),
    ] {
        requests += &format!("{line}\n");
    }
    let (lines, code) = run(requests.as_bytes(), &["--outstanding", "7"]);
    assert_eq!(code, Some(0));
    for i in 0..40 {
        let [line] = of(&lines, json!(i))[..] else { panic!("{i} was not answered once") };
        assert_eq!(
            (&line["status"], &line["body"]["choices"]),
            (&json!(200), &server.complete(&body(i))["choices"])
        );
    }
    let stream = of(&lines, json!("stream"));
    let (last, events) = stream.split_last().unwrap();
    assert_eq!(**last, json!({ "id": "stream", "status": 200 }));
    let text: String =
        events.iter().map(|line| line["event"]["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(json!(text), server.complete(&body(3))["choices"][0]["text"]);
    let score = of(&lines, json!(["score"]))[0];
    assert_eq!(score["body"], server.post("/v1/score", &pair).json());
    assert_eq!(of(&lines, json!("models"))[0]["body"]["data"][0]["id"], "base");
    let metrics = of(&lines, json!("metrics"))[0]["body"].as_str().unwrap();
    assert!(metrics.contains("trimtab_pages_free"));
}

/// Goal: whatever is wrong with a line is said in a line, and the others are answered.
#[test]
fn bad_lines_get_error_lines() {
    let good = json!({ "id": "good", "path": "/v1/completions", "body": { "prompt": "x", "max_tokens": 2 } });
    let huge = format!("{{\"id\":9,\"path\":\"/v1/score\",\"body\":\"{}\"}}", "x".repeat(9000));
    let cases = [
        ("{", 400, json!(null)),
        ("\u{feff}{}", 400, json!(null)),
        ("{}", 400, json!("id")),
        ("[]", 400, json!(null)),
        ("\"x\"", 400, json!(null)),
        ("{\"id\":1}", 400, json!("path")),
        (
            "{\"id\":2,\"path\":\"/v1/completions\",\"body\":{\"prompt\":\"x\",\"n\":0}}",
            400,
            json!("n"),
        ),
        (
            "{\"id\":3,\"path\":\"/v1/completions\",\"body\":{\"prompt\":\"x\",\"y\":0}}",
            400,
            json!("y"),
        ),
        ("{\"id\":4,\"path\":\"/v1/nothing\",\"body\":{}}", 404, json!(null)),
        ("{\"id\":5,\"path\":\"/v1/nothing\"}", 404, json!(null)),
        ("{\"id\":6,\"path\":\"/health\",\"cancel\":1}", 400, json!("cancel")),
        ("{\"id\":7,\"path\":\"/health\",\"more\":1}", 400, json!("more")),
        ("{\"more\":1,\"id\":[8],\"path\":\"/health\"}", 400, json!("more")),
        ("{\"id\":9,\"path\":\"/health\",\"more\":\"\\ud800\"}", 400, json!("more")),
        ("{\"id\":\"path\",\"path\":3}", 400, json!("path")),
        ("{\"id\":\"f\",\"path\":\"/v1/completions\"}", 400, json!("body")),
        ("{\"id\":\"g\",\"path\":\"/v1/completions\",\"body\":null}", 400, json!("body")),
        ("{\"id\":\"h\",\"path\":\"/health\",\"body\":{}}", 400, json!("body")),
        (huge.as_str(), 413, json!(null)),
    ];
    let mut input = String::new();
    for (line, ..) in &cases {
        input += &format!("{line}\n\n");
    }
    input += &good.to_string();
    let (lines, code) = run(input.as_bytes(), &["--max-body", "4K"]);
    assert_eq!((code, lines.len()), (Some(0), cases.len() + 1));
    for (index, (line, status, param)) in cases.iter().enumerate() {
        let shown = &line[..line.len().min(60)];
        // Nobody reads a line that is too long.
        let readable = serde_json::from_str::<Value>(&line.replace("\\ud800", ""))
            .ok()
            .filter(|_| *status != 413);
        let id = readable.map_or(json!(null), |line| line["id"].clone());
        let number = 2 * index + 1;
        let mut answers = lines.iter().filter(|answer| {
            // Lines that are objects with an id are known by it, the others by number.
            if id.is_null() { answer["line"] == number } else { answer["id"] == id }
        });
        let answer = answers.next().unwrap_or_else(|| panic!("no answer to {shown}: {lines:#?}"));
        assert_eq!(&answer["status"], status, "{shown}");
        assert_eq!(&answer["body"]["error"]["param"], param, "{shown}");
    }
    assert_eq!(of(&lines, json!("good"))[0]["status"], 200);
    let said = |number: usize| {
        let line = lines.iter().find(|line| line["line"] == number).unwrap();
        line["body"]["error"]["message"].as_str().unwrap()
    };
    assert!(said(1).starts_with("the line is not a valid request: EOF"), "{}", said(1));
    assert_eq!(said(7), "the line must be an object");
    assert_eq!(said(2 * cases.len() - 1), "the line is larger than 8192 bytes");
}

/// Goal: ids come back as they were written, so that two numbers that are one float stay two ids; a string is
/// known by what it says.
#[test]
fn ids_come_back_as_they_were_written() {
    let ids = [
        "340282366920938463463374607431768211457",
        "340282366920938463463374607431768211456",
        "1.0",
        "1e3",
        "1e400",
        "[1.0, {\"b\":1,\"a\":2}]",
        "\"\\u00e9\\/\"",
        "null",
    ];
    let line = |id: &&str| format!("{{\"id\":{id},\"path\":\"/health\"}}\n");
    let bad = |id: &&str| format!("{{\"id\":{id},\"path\":\"/health\",\"more\":1}}\n");
    let input: String = ids.iter().map(line).chain(ids.iter().map(bad)).collect();
    let written = output(input.as_bytes(), &[]).0;
    for id in ids {
        let starts = format!("{{\"id\":{id},\"status\":");
        let mut statuses: Vec<&str> =
            written.lines().filter_map(|line| line.strip_prefix(&starts)?.get(..3)).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, ["200", "400"], "{id}: {written}");
    }
    // A request is cancelled by its own id, not by one that is near it.
    let mut long = long_search("The film");
    long["n"] = 30.into();
    let big = "18446744073709551617";
    let input = format!(
        "{{\"id\":{big},\"path\":\"/v1/completions\",\"body\":{long}}}\n\
         {{\"id\":\"\\u00e9\",\"path\":\"/v1/completions\",\"body\":{long}}}\n\
         {{\"id\":1,\"cancel\":18446744073709551616}}\n\
         {{\"id\":2,\"cancel\":{big}}}\n\
         {{\"id\":3,\"cancel\":\"é\"}}\n"
    );
    let (lines, _) = run(input.as_bytes(), &[]);
    let cancelled = |id: i32| of(&lines, json!(id))[0]["body"]["cancelled"].as_bool().unwrap();
    assert_eq!([1, 2, 3].map(cancelled), [false, true, true]);
    // No line is written that others may not read.
    let half = output(b"{\"id\":\"\\ud800\",\"path\":\"/health\"}\n", &[]).0;
    assert!(half.starts_with("{\"id\":null,\"status\":400,"), "{half}");
    assert!(
        half.contains("`id` holds half of a character") && half.contains("\"line\":1"),
        "{half}"
    );
}

/// Goal: a request can be cancelled, its id is taken while it runs, and nobody is answered twice.
#[test]
fn lines_can_be_cancelled() {
    let mut long = long_search("The film");
    long["n"] = 30.into();
    let long = json!({ "id": 1, "path": "/v1/completions", "body": long });
    let input = [
        long.clone(),
        long,
        json!({ "id": 2, "cancel": 1 }),
        json!({ "id": 3, "cancel": 1 }),
        json!({ "id": 1, "path": "/health" }),
    ];
    let input = input.map(|line| format!("{line}\n")).concat();
    let started = Instant::now();
    let (lines, code) = run(input.as_bytes(), &[]);
    assert_eq!(code, Some(0));
    let mut statuses: Vec<_> =
        of(&lines, json!(1)).iter().map(|line| line["status"].as_u64().unwrap()).collect();
    statuses.sort_unstable();
    // The second one of that id is refused; what comes after the cancellation depends on whether
    // the first one has gone already.
    assert_eq!(statuses.len(), 3, "{lines:?}");
    assert!(statuses.contains(&400) && statuses.contains(&499), "{statuses:?}");
    assert_eq!(of(&lines, json!(2))[0]["body"], json!({ "cancelled": true }));
    assert_eq!(of(&lines, json!(3))[0]["body"], json!({ "cancelled": false }));
    assert!(started.elapsed() < Duration::from_secs(20), "the search went on");
}

/// Goal: when nobody reads the output any more, the process ends.
#[test]
fn a_reader_that_goes_away_ends_the_process() {
    let mut command = trimtab();
    command.arg("stdio").args(models());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    let line = json!({ "id": 1, "path": "/health" });
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        // The pipe breaks when the process has gone.
        let _ = writeln!(stdin, "{line}");
        assert!(started.elapsed() < Duration::from_secs(60), "the process goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
