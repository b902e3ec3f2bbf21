//! Bad days: what passes is asked for again, what does not fails one search, with a reason.

use std::time::Instant;

use super::damage::{cases, damages};
use super::*;

type Fault = fn(&Asked) -> Reply;

/// Ways to fail.
fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("500", |_| Reply::Json(500, serde_json::json!({"error": {"message": "out of memory"}}))),
        ("502", |_| Reply::Raw(502, "content-type: text/html\r\n", "<h1>Bad gateway</h1>".into())),
        ("429", |_| Reply::Raw(429, "retry-after: 0\r\n", "slow down".into())),
        ("503", |_| Reply::Raw(503, "retry-after: 0.05\r\n", String::new())),
        // Far too late, also for a client that a busy machine keeps from looking at its clock.
        ("late", |asked| Reply::Late(Duration::from_secs(8), completion(asked, asked.number("n")))),
        ("cut", |_| Reply::Cut),
        ("cut within", |asked| Reply::CutWithin(completion(asked, asked.number("n")))),
        ("malformed", |_| {
            Reply::Raw(200, "content-type: application/json\r\n", "{\"choices\": [{".into())
        }),
        ("another type", |_| {
            Reply::Raw(200, "content-type: text/html\r\n", "<html>Welcome</html>".into())
        }),
        ("no choices", |_| Reply::Json(200, serde_json::json!({"choices": []}))),
        ("no text", |_| {
            Reply::Json(200, serde_json::json!({"choices": [{"finish_reason": "stop"}]}))
        }),
        ("no reason", |_| Reply::Json(200, serde_json::json!({"choices": [{"text": "x"}]}))),
        ("aborted", |_| {
            let choice = serde_json::json!({"text": "x", "finish_reason": "abort"});
            Reply::Json(200, serde_json::json!({"choices": [choice]}))
        }),
        ("other fields", |_| Reply::Json(200, serde_json::json!({"answer": 42}))),
    ]
}

/// Goal: whatever fails once or twice, the answers are those of a server that never fails, and
/// nothing that was answered is asked for again.
#[test]
fn what_passes_does_not_change_an_answer() {
    let jobs: Vec<(&str, Settings)> =
        ["Why?", "How?", "When?"].map(|p| (p, settings(2, 3, Some(4), 8, 11))).to_vec();
    let good = scripted();
    let expected: Vec<_> =
        run_all(endpoint(&good), &jobs).iter().map(|o| told(o.as_ref().unwrap())).collect();
    for (name, fail) in faults() {
        let server = Server::new(move |asked| {
            // About half of all requests fail, once or twice.
            let bits = asked.number("seed") % 4;
            if asked.before < bits.saturating_sub(1) {
                return fail(asked);
            }
            Reply::Json(200, completion(asked, asked.number("n")))
        });
        let hasty = Endpoint { timeout: Duration::from_millis(1000), ..endpoint(&server) };
        let outcomes = run_all(hasty, &jobs);
        let outcomes: Vec<_> = outcomes.iter().map(|o| told(o.as_ref().expect(name))).collect();
        assert_eq!(outcomes, expected, "{name}");
        let again = server.asked().iter().filter(|asked| asked.before > 0).count();
        assert!(again > 0, "{name}: nothing failed");
        assert_eq!(server.asked().len() - again, good.asked().len(), "{name}");
    }
}

/// Goal: when the retries are spent the error says whom we asked, how often and what the server
/// said; and only that search fails, whatever the others do.
#[test]
fn a_lost_search_is_lost_alone() {
    for (name, fail) in faults() {
        let server = Server::new(move |asked| {
            if asked.prompt().contains("Lost") {
                return fail(asked);
            }
            Reply::Json(200, completion(asked, asked.number("n")))
        });
        let hasty =
            Endpoint { timeout: Duration::from_millis(1000), retries: 1, ..endpoint(&server) };
        let one = || settings(2, 2, Some(4), 8, 1);
        let results = run_all(hasty, &[("Why?", one()), ("Lost?", one()), ("How?", one())]);
        assert!(results[0].is_ok() && results[2].is_ok(), "{name}");
        let error = results[1].as_ref().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}/completions: ", server.url)), "{error}");
        assert!(error.ends_with("(asked 2 times)"), "{name}: {error}");
        let word = match name {
            "500" => "status 500: out of memory",
            "502" => "status 502: <h1>Bad gateway</h1>",
            "429" => "status 429: slow down",
            "503" => "status 503",
            "late" => "no answer in time",
            "cut" | "cut within" => "no answer: ",
            "malformed" => "is not a completion",
            "another type" => "(text/html) is not a completion",
            "no choices" => "has no choices",
            "no text" => "has no text",
            "no reason" => "finished for \"nothing\"",
            "aborted" => "finished for \"abort\"",
            _ => "missing field `choices`",
        };
        assert!(error.contains(word), "{name}: {error}");
        let lost = server.asked().iter().filter(|asked| asked.prompt().contains("Lost")).count();
        assert_eq!(lost, 2, "{name}");
    }
}

/// Goal: what will not pass is not asked for again.
#[test]
fn what_does_not_pass_fails_at_once() {
    let refusals: [(u16, &str, &str); 6] = [
        (400, "{\"error\":{\"message\":\"top_k is not known\"}}", "status 400: top_k is not known"),
        (401, "{\"message\":\"no key\"}", "status 401: no key"),
        (404, "{\"detail\":\"Not Found\"}", "status 404: Not Found"),
        (422, "{\"error\":\"prompt too long\"}", "status 422: prompt too long"),
        (307, "", "status 307"),
        (200, "{\"choices\":[{\"text\":\"\",\"finish_reason\":\"content_filter\"}]}", "filter"),
    ];
    for (status, body, word) in refusals {
        let headers = "content-type: application/json\r\nlocation: /elsewhere\r\n";
        let server = Server::new(move |_| Reply::Raw(status, headers, body.into()));
        let error = run(endpoint(&server), "q", settings(1, 2, None, 4, 0)).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(server.asked().len(), 1, "{word}");
    }
}

/// Goal: a server that says when to come back is not asked before; one that asks for more patience
/// than anybody has is not waited for.
#[test]
fn retry_after_is_honoured() {
    // A date has whole seconds, so that of 2 more than 1 is left.
    let seconds = |status| Reply::Raw(status, "Retry-After: 1\r\n", String::new());
    for reply in [seconds(429), seconds(503), Reply::Until(2)] {
        let name = format!("{reply:?}");
        let server = Server::new(move |asked| match asked.before {
            0 => reply.clone(),
            _ => Reply::Json(200, completion(asked, asked.number("n"))),
        });
        let started = Instant::now();
        run(endpoint(&server), "q", settings(1, 1, None, 4, 0)).unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1), "{name}");
    }
    let server = Server::new(|_| Reply::Raw(429, "Retry-After: 86400\r\n", "quota".into()));
    let error = run(endpoint(&server), "q", settings(1, 1, None, 4, 0)).unwrap_err().to_string();
    assert!(error.contains("status 429: quota; it asks to come back in 86400 seconds"), "{error}");
}

/// Goal: retries wait longer each time, and not all alike.
#[test]
fn waits_grow_and_differ() {
    let server = Server::new(|asked| match asked.before {
        0..3 => Reply::Cut,
        _ => Reply::Json(200, completion(asked, asked.number("n"))),
    });
    let patient = Endpoint { backoff: Duration::from_millis(60), ..endpoint(&server) };
    let started = Instant::now();
    run(patient, "q", settings(1, 1, None, 4, 0)).unwrap();
    // 60 + 120 + 240 ms, each at least halved.
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(210), "{elapsed:?}");
}

/// Goal: no server at all is an error that names the address.
#[test]
fn no_server_is_an_error() {
    let server = scripted();
    let gone = Endpoint { retries: 1, ..endpoint(&server) };
    drop(server);
    std::thread::sleep(Duration::from_millis(50));
    let error = run(gone.clone(), "q", settings(1, 1, None, 4, 0)).unwrap_err().to_string();
    assert!(error.starts_with(&gone.url) && error.contains("no answer"), "{error}");
}

/// Goal: a server that sends more text than tokens can have is not believed.
#[test]
fn far_too_much_text_is_refused() {
    let server = Server::new(|_| {
        let choice =
            serde_json::json!({"text": "x".repeat(4 * 128 + 1), "finish_reason": "length"});
        Reply::Json(200, serde_json::json!({"choices": [choice]}))
    });
    let error = run(endpoint(&server), "q", settings(1, 1, Some(4), 8, 0)).unwrap_err().to_string();
    assert!(error.contains("513 bytes of text for at most 4 tokens"), "{error}");
}

/// Goal: whatever a server answers, a search ends with an answer or with an error that names it.
#[test]
fn damaged_answers_never_panic() {
    let (mut fine, mut refused) = (0, 0);
    for (number, damages) in cases(150, damages()).enumerate() {
        let server = Server::new(move |asked| {
            let mut answer = completion(asked, asked.number("n"));
            answer["usage"] = serde_json::json!({"completion_tokens": 7, "total_tokens": 12});
            let answer = answer.to_string().into_bytes();
            let bytes = damages.iter().fold(answer, |bytes, damage| damage.apply(bytes));
            let headers = ["content-type: application/json\r\n", "retry-after: nan\r\n"];
            let status = [200, 200, 200, 200, 503][number % 5];
            Reply::Raw(status, headers[number % 2], String::from_utf8_lossy(&bytes).into_owned())
        });
        let once = Endpoint { retries: 0, ..endpoint(&server) };
        match run(once, "q", settings(1, 2, None, 6, 1)) {
            Ok(outcome) => {
                assert!(outcome.response.tokens.len() <= 6);
                fine += 1;
            }
            Err(error) => {
                assert!(error.to_string().starts_with(&server.url), "{error}");
                refused += 1;
            }
        }
    }
    assert!(fine > 10 && refused > 10, "{fine} were fine, {refused} were refused");
}

/// Goal: a slow answer holds up its own search and no other; a search that is cancelled meanwhile
/// is gone at once, and nothing more is asked for it.
#[test]
fn a_slow_answer_holds_up_nobody_else() {
    let server = Server::new(|asked| match asked.prompt().contains("Slow") {
        true => Reply::Late(Duration::from_millis(2000), serde_json::json!({"choices": []})),
        false => Reply::Json(200, completion(asked, asked.number("n"))),
    });
    let mut scheduler = scheduler(endpoint(&server), 4);
    let started = Instant::now();
    let quick = settings(2, 2, Some(2), 12, 3);
    scheduler.submit(0, &Prompt::Text("Slow".into()), quick.clone()).unwrap();
    scheduler.submit(1, &Prompt::Text("Why?".into()), quick.clone()).unwrap();
    let mut finished = Vec::new();
    while finished.is_empty() {
        finished = scheduler.tick().unwrap();
    }
    assert_eq!(finished[0].id, 1);
    let alone = run(endpoint(&server), "Why?", quick).unwrap();
    assert_eq!(told(finished[0].result.as_ref().unwrap()), told(&alone));
    assert!(scheduler.cancel(0));
    assert!(scheduler.tick().unwrap().is_empty() && scheduler.pending() == 0);
    assert!(started.elapsed() < Duration::from_millis(1900), "{:?}", started.elapsed());
    std::thread::sleep(Duration::from_millis(2300));
    let slow = server.asked().iter().filter(|asked| asked.prompt().contains("Slow")).count();
    assert_eq!(slow, 1, "the request under way, and none after it");
}
