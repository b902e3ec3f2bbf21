//! Chat templates: those that people's models have, and Jinja as Python has it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trimtab::error::Error;
use trimtab::text::{ChatTemplate, Message, SpecialTokens};

use crate::fixtures::{has_words, message};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn cases(name: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap();
    assert!(cases.len() > 100, "{name}");
    cases
}

fn render(source: &str, tokens: &SpecialTokens, messages: &[Message]) -> Result<String, Error> {
    let template = ChatTemplate::new(source, Path::new("chat_template.jinja"), tokens.clone());
    template.render(messages, Some("2024-07-26".parse().unwrap()))
}

fn tokens() -> SpecialTokens {
    [("bos_token", "<s>"), ("eos_token", "</s>"), ("image_token", "<image>")]
        .map(|(name, token)| (name.into(), token.into()))
        .to_vec()
}

/// Goal: a model reads, to the byte, the text that transformers gives it.
#[test]
fn templates_of_real_models_write_what_transformers_writes() {
    for case in cases("templates.json") {
        let name = case["template"].as_str().unwrap();
        let source = fs::read_to_string(golden(&format!("templates/{name}.jinja"))).unwrap();
        let named = case["special_tokens"].as_object().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let tokens = named.iter().map(|(name, token)| (name.clone(), text(token))).collect();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let result = render(&source, &tokens, &messages);
        match (case["rendered"].as_str(), case["left_out"].as_u64()) {
            (Some(rendered), None) => {
                assert_eq!(result.unwrap(), rendered, "{case}");
                // A template's own line ends are those of no file system.
                let windows = source.replace('\n', "\r\n");
                assert_eq!(render(&windows, &tokens, &messages).unwrap(), rendered, "{case}");
            }
            (Some(_), Some(index)) => {
                let role = &messages[index as usize].role;
                let words =
                    [&*format!("what message {}", index + 1), role, "leave the message out"];
                has_words(&result.unwrap_err(), &words);
            }
            (None, _) => has_words(&result.unwrap_err(), &[case["error"].as_str().unwrap()]),
        }
    }
}

/// Goal: no template is read otherwise than by the engine that its authors tried it with.
#[test]
fn jinja_is_that_of_python() {
    let cases = cases("jinja.json");
    let prefix = cases[0]["prefix"].as_str().unwrap();
    let mut wrong = Vec::new();
    for case in &cases[1..] {
        let template = case["template"].as_str().unwrap();
        let wanted = case["rendered"].as_str().unwrap();
        match render(&format!("{prefix}{template}"), &tokens(), &[]) {
            Ok(text) if text == wanted => {}
            other => wrong.push(format!("{template}\n  wanted {wanted:?}\n  got {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Goal: a template that we would read otherwise than Python does is refused, not guessed at.
#[test]
fn what_python_would_read_otherwise_is_refused() {
    for (template, words) in [
        (
            "a\n{% macro f(a, b=a) %}{{ b }}{% endmacro %}",
            &["default", "parameter a", "line 2"][..],
        ),
        ("{% macro f(a, b=[g(a)]) %}{% endmacro %}", &["macro f", "parameter a"]),
        (
            "{% for i in [1] %}{% with %}{% break %}{% endwith %}{% endfor %}",
            &["break inside with"],
        ),
        (
            "{% for i in [1] %}\r\n{% generation %}{% continue %}{% endgeneration %}{% endfor %}",
            &["continue inside generation", "line 2"],
        ),
        ("{% for i in [1] %}{% set x %}{% break %}{% endset %}{% endfor %}", &["break inside set"]),
        ("{% autoescape true %}{% endautoescape %}", &["autoescape"]),
        (r"{{ '\N{BULLET}' }}", &["by its name"]),
        (r"{{ '\ud83d' }}", &["no character"]),
        ("{{ [1] | map('string') }}", &["generator", "a list"]),
        ("{{ [1] | map('string') | length }}", &["generator has no length"]),
        ("{{ ([1] | select)[0].x.y }}", &["undefined"]),
        ("{{ '½'.isdigit() }}", &["isdigit", "ASCII"]),
        ("{{ 'ǆ'.title() }}", &["title"]),
        ("{{ '٣' | int }}", &["ASCII"]),
        ("{{ {} | attr('x') }}", &["attr is unknown"]),
        ("{{ ','.join([1]) }}", &["no string"]),
        ("{{ missing | tojson }}", &["undefined", "no JSON"]),
        ("{{ 'a' % 1 }}", &["more arguments"]),
        ("{{ '%s%s' % 'a' }}", &["too few"]),
        ("{{ '%(a)s' % {'b': 1} }}", &["no argument \"a\""]),
        ("{{ '%' % 1 }}", &["incomplete"]),
        ("{{ 7 % 0 }}", &["zero"]),
        ("{{ none % 1 }}", &["unsupported types none and number"]),
        ("{{ 'a'.split('') }}", &["empty"]),
        ("{{ [1].index(2) }}", &["not in the list"]),
        ("{{ strftime_now('%Q') }}", &["%Q"]),
        ("{% generation %}x", &["unexpected end"]),
        ("x{% endgeneration %}", &["unknown statement"]),
    ] {
        has_words(&render(template, &tokens(), &[]).unwrap_err(), words);
    }
}

/// Goal: a hostile template costs bounded time and memory, and no stack.
#[test]
fn templates_that_grow_beyond_all_bounds_are_stopped() {
    let grows = "{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}";
    for template in [
        "{% set n = namespace() %}{% set n.a = n %}{% set n.b = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.a = n %}{% set n.b = n %}{{ n | tojson }}",
        "{{ 'a'.ljust(99999999999) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%99999999999s' % 1 }}",
        &format!("{{{{ {}1 }}}}", "(".repeat(100_000)),
        &format!("{{{{ {}1 }}}}", "1 % ".repeat(100_000)),
        &format!("{grows}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}{{{{ n.x | length }}}}"),
        &format!("{grows}{{% set n.x = [n.x, n.x] | join %}}{{% endfor %}}"),
        &format!("{grows}{{% set n.x = '%s%s' % (n.x, n.x) %}}{{% endfor %}}"),
        &format!("{grows}{{% set n.x = n.x.join([n.x, n.x]) %}}{{% endfor %}}"),
    ] {
        let error = render(template, &tokens(), &[]).unwrap_err();
        has_words(&error, &["chat template failed"]);
    }
}

/// Goal: a long template is read in time that grows with its length.
#[test]
fn long_templates_are_read_once() {
    let many = |part: &str| part.repeat(100_000);
    let chain = format!("{{{{ 'x'{} }}}}", many(" ~ 'y'"));
    assert_eq!(render(&chain, &tokens(), &[]).unwrap().len(), 100_001);
    assert_eq!(render(&many("{{ 'x' }}{ "), &tokens(), &[]).unwrap(), many("x{ "));
}

#[test]
fn templates_know_each_special_token_by_its_name_and_no_other() {
    let all = "{{ bos_token }}{{ image_token }}[{{ pad_token }}]{{ pad_token is defined }}";
    assert_eq!(render(all, &tokens(), &[]).unwrap(), "<s><image>[]False");
    // Names that transformers passes itself are not overwritten.
    let tokens = vec![("add_generation_prompt".to_owned(), "x".to_owned())];
    assert_eq!(render("{{ add_generation_prompt }}", &tokens, &[]).unwrap(), "True");
}

/// Goal: `\r\n` in a template is a line end as Python reads one; in a message it is what was said.
#[test]
fn line_ends_of_a_template_are_line_feeds() {
    let template = "{% if true %}\r\na\r{{ 'x\r\ny' }}\r\n{% endif %}\r\n{{ '\\r\\n' }}{{ messages[0].content }}\r\n";
    let messages = [message("user", "one\r\ntwo\r")];
    assert_eq!(render(template, &tokens(), &messages).unwrap(), "a\nx\ny\n\r\none\r\ntwo\r");
    let error = render("a\r\nb\r\n{{ nothing.at_all }}", &tokens(), &[]).unwrap_err();
    has_words(&error, &["line 3"]);
}

const SYSTEM_ONLY: &str = "{% for m in messages %}{% if m.role == 'system' %}[S]{{ m.content }}\
    {% elif m.role == 'user' %}[U]{{ m.content }}{% endif %}{% endfor %}";

#[test]
fn a_developer_is_the_system_where_the_template_does_not_know_it() {
    let messages = [message("developer", "be kind"), message("user", "hi")];
    assert_eq!(render(SYSTEM_ONLY, &tokens(), &messages).unwrap(), "[S]be kind[U]hi");
    // A template that writes any role was not made for each.
    let any = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    assert_eq!(render(any, &tokens(), &messages).unwrap(), "<system>be kind<user>hi");
    let knows = format!("{any}{{# developer #}}{{{{ 'developer' == messages[0].role }}}}");
    assert_eq!(
        render(&knows, &tokens(), &messages).unwrap(),
        "<developer>be kind<user>hiTrue",
        "a template that asks for the role gets it"
    );
    let talks = format!("You help a developer. {{# 'developer' #}}{any}");
    assert!(render(&talks, &tokens(), &messages).unwrap().contains("<system>"));
}

/// Goal: nothing that was asked is lost without a word.
#[test]
fn a_message_that_a_template_leaves_out_is_an_error() {
    let users =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    for role in ["system", "developer", "tool", "User"] {
        let messages = [message("user", "a"), message(role, " be kind "), message("user", "b")];
        let error = render(users, &tokens(), &messages).unwrap_err();
        has_words(&error, &["chat_template.jinja", "message 2", role, "into a user's message"]);
        // Nothing is lost of a message that says nothing.
        let messages = [message(role, " \n"), message("user", "b")];
        assert_eq!(render(users, &tokens(), &messages).unwrap(), "b");
    }
    // The text that is put there to see whether it matters is another one.
    for says in ["Be brief.", "Message 0 says this."] {
        let messages = [message("system", says), message("user", "b")];
        assert_eq!(render(SYSTEM_ONLY, &tokens(), &messages).unwrap(), format!("[S]{says}[U]b"));
    }
    // Each of many messages is looked at.
    let mut messages = vec![message("system", "be kind"); 100];
    messages.push(message("user", "b"));
    assert!(render(SYSTEM_ONLY, &tokens(), &messages).unwrap().ends_with("[S]be kind[U]b"));
    messages[70].role = "tool".into();
    has_words(&render(SYSTEM_ONLY, &tokens(), &messages).unwrap_err(), &["message 71", "tool"]);
    // A template may look at a message in other ways than to write it.
    let looks =
        "{% if 'kind' in messages[0].content %}Kindly: {% endif %}{{ messages[-1].content }}";
    let messages = [message("system", "be kind"), message("user", "b")];
    assert_eq!(render(looks, &tokens(), &messages).unwrap(), "Kindly: b");
    let fails = "{% if messages[0].content != 'be kind' %}{{ raise_exception('x') }}{% endif %}.\
        {{ messages[-1].content }}";
    assert_eq!(render(fails, &tokens(), &messages).unwrap(), ".b");

    // Earlier turns may be left out on purpose; the last is what is to be answered.
    let last = "{{ messages[-1].content }}";
    let messages = [message("user", "a"), message("assistant", "b"), message("user", "c")];
    assert_eq!(render(last, &tokens(), &messages).unwrap(), "c");
    let parts =
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}";
    let error = render(parts, &tokens(), &messages).unwrap_err();
    has_words(&error, &["message 3", "\"user\"", "another form than text"]);
}

#[test]
fn a_template_that_refuses_instructions_is_named_with_the_cure() {
    let refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system!') }}\
        {% endif %}{{ m.content }}{% endfor %}";
    for role in ["system", "developer"] {
        let messages = [message(role, "be kind"), message("user", "b")];
        let error = render(refuses, &tokens(), &messages).unwrap_err();
        has_words(&error, &["No system!", "line 1", role, "into a user's message"]);
    }
    let broken = "{{ raise_exception('No!') }}";
    let messages = [message("system", "be kind"), message("user", "b")];
    let error = render(broken, &tokens(), &messages).unwrap_err().to_string();
    assert!(error.contains("No!") && !error.contains("user's"), "{error}");
}
