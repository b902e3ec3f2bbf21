//! Templates and chat templates.

use serde_json::json;
use trimtab::error::Error;
use trimtab::text::{Bos, Message, Prompt, PromptFormat, Template};

use crate::fixtures::*;

#[test]
fn templates_have_one_place_or_more() {
    let template = Template::parse("--base-template", "Q: {prompt}\\n{a} {{b}}").unwrap();
    assert_eq!(template.render("why? {prompt}"), "Q: why? {prompt}\\n{a} {{b}}");
    let twice = Template::parse("--base-template", "{prompt}|{prompt}").unwrap();
    assert_eq!(twice.render("x"), "x|x");
    assert_eq!(Template::default().render("x"), "x");
    for text in ["", "prompt", "{ prompt }", "{prompt"] {
        let error = Template::parse("--guide-template", text).unwrap_err();
        assert!(matches!(error, Error::Template { .. }));
        has_words(&error, &["--guide-template", "{prompt}"]);
    }
}

/// What a template makes of a conversation.
fn chat(template: &str, messages: &[Message]) -> Result<String, Error> {
    let config = json!({"bos_token": "<|end|>"}).to_string();
    let files = [("chat_template.jinja", template), ("tokenizer_config.json", &config)];
    let format = format(open_with(&byte_level(), &files).unwrap(), false);
    format.render(&Prompt::Chat(messages.to_vec())).map(|rendered| rendered.text)
}

#[test]
fn chat_templates_run_as_in_transformers() {
    let zephyr = "{% for message in messages %}\n    {% if message['role'] == 'user' %}\n\
        {{ '<|user|>\n' + message['content'] + eos_token }}\n    {% elif message.role == 'system' \
        %}\n{{ '<|system|>\n' + message['content'].strip() }}\n    {% endif %}\n    \
        {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n    {% endif %}\n\
        {% endfor %}\n";
    let config = json!({"eos_token": "<|end|>", "chat_template": zephyr}).to_string();
    let open = |files: &[(&str, &str)]| open_with(&byte_level(), files).unwrap();
    let format = format(open(&[("tokenizer_config.json", &config)]), true);
    assert_eq!(
        format.render(&Prompt::Text("hi".into())).unwrap().text,
        "<|user|>\nSay: hi<|end|>\n<|assistant|>\n"
    );
    let messages = vec![message("system", " be kind "), message("user", "hi")];
    assert_eq!(
        format.render(&Prompt::Chat(messages)).unwrap().text,
        "<|system|>\nbe kind\n<|user|>\nhi<|end|>\n<|assistant|>\n",
        "the prompt template is not for conversations"
    );

    // Of several, the one called "default"; the file of its own counts before the field.
    let named = json!([{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]);
    let config = json!({"chat_template": named}).to_string();
    let files = [("tokenizer_config.json", &*config), ("chat_template.jinja", "J")];
    let rendered =
        |files: &[(&str, &str)]| open(files).chat_template().unwrap().render(&[], None).unwrap();
    assert_eq!(rendered(&files[..1]), "D");
    assert_eq!(rendered(&files), "J");

    let user = [message("user", "<a href='x'>&\\u003c é\n\"")];
    assert_eq!(
        chat("{{ messages | tojson }}", &user).unwrap(),
        r#"[{"role": "user", "content": "<a href='x'>&\\u003c é\n\""}]"#
    );
    assert_eq!(chat("{{ messages[0]['content'] }}", &user).unwrap(), user[0].content);
    assert_eq!(chat("{{ tools is none }} {{ documents is not none }}", &[]).unwrap(), "True False");
    assert_eq!(chat("[{{ eos_token }}{{ missing }}]", &[]).unwrap(), "[]");
    assert_eq!(
        chat(
            "{% for m in messages %}{{ m.content[:2] }}{% if m.role == 'user' %}{% break %}{% endif %}{% endfor %}.",
            &user
        )
        .unwrap(),
        "<a."
    );
    let year = chat("{{ strftime_now('%Y') }}", &[]).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024);
    assert_eq!(
        chat("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}\
              {{ ns.n }}{{ messages[0].role.upper() }}{{ messages[-1]['content'].startswith('<a') }}", &user)
            .unwrap(),
        "1USERTrue"
    );
}

#[test]
fn chat_templates_fail_with_their_reason() {
    for (template, words) in [
        ("{{ raise_exception('roles must alternate') }}", &["roles must alternate", "line 1"][..]),
        ("a\n{% if %}", &["line 2"]),
        ("{{ messages.nothing.at_all }}", &["undefined"]),
        ("{{ strftime_now('%Q') }}", &["%Q"]),
        ("{{ 'x' | no_such_filter }}", &["no_such_filter"]),
        ("{% include 'other' %}", &["other"]),
    ] {
        let error = chat(template, &[message("user", "hi")]).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error:?}");
        has_words(&error, &["chat_template.jinja", "chat template failed"]);
        has_words(&error, words);
    }
    for format in [format(open(&byte_level()), true), format(open(&byte_level()), false)] {
        let error = format.render(&Prompt::Chat(Vec::new())).unwrap_err();
        has_words(&error, &["no chat template", "--chat"]);
        has_words(&error, &[&format.tokenizer.folder().display().to_string()]);
        assert_eq!(format.render(&Prompt::Text("x".into())).is_err(), format.chat);
    }
}

#[test]
fn a_mark_that_the_chat_template_wrote_is_not_doubled() {
    let files = [("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}")];
    let config = json!({"bos_token": "<|end|>"}).to_string();
    let files = [files[0], ("tokenizer_config.json", &config)];
    let format = format(open_with(&llama3(), &files).unwrap(), true);
    let rendered = format.render(&Prompt::Text("he".into())).unwrap();
    assert_eq!(rendered.text, "<|end|>Say: he");
    for bos in [Bos::Auto, Bos::Always] {
        let ids = PromptFormat { bos, ..format.clone() }.encode(&rendered).unwrap();
        assert_eq!((ids[0], ids.iter().filter(|&&id| id == 259).count()), (259, 1), "{bos:?}");
    }
}

/// Goal: a text that a chat template wrote gets nothing in front that the template did not write: zephyr's has no
/// beginning-of-sequence token, though its tokenizer adds one to a plain text.
#[test]
fn a_chat_template_says_itself_what_is_in_front() {
    let files = [("chat_template.jinja", "{{ messages[0].content }}")];
    let chat = format(open_with(&llama3(), &files).unwrap(), true);
    let rendered = chat.render(&Prompt::Text("he".into())).unwrap();
    let with = |bos| PromptFormat { bos, ..chat.clone() }.encode(&rendered).unwrap();
    let plain = chat.tokenizer.encode("Say: he", Bos::Never).unwrap();
    assert_eq!(with(Bos::Auto), plain);
    assert_eq!(with(Bos::Never), plain);
    assert_eq!(with(Bos::Always), [&[259][..], &plain].concat());
    let text = PromptFormat { chat: false, ..chat.clone() };
    let text = text.encode(&text.render(&Prompt::Text("he".into())).unwrap()).unwrap();
    assert_eq!(text, [&[259][..], &plain].concat());
}

/// Goal: `--system` gives a conversation the system message that it lacks, also an empty one, and leaves one that
/// it has.
#[test]
fn a_conversation_without_a_system_message_gets_the_given_one() {
    let template = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    let files = [("chat_template.jinja", template)];
    let format = format(open_with(&byte_level(), &files).unwrap(), true);
    let render = |system: Option<&str>, prompt: Prompt| {
        let system = system.map(Into::into);
        PromptFormat { system, ..format.clone() }.render(&prompt).unwrap().text
    };
    let text = || Prompt::Text("hi".into());
    assert_eq!(render(None, text()), "[user:Say: hi]");
    assert_eq!(render(Some(""), text()), "[system:][user:Say: hi]");
    assert_eq!(render(Some("Be kind."), text()), "[system:Be kind.][user:Say: hi]");
    for role in ["system", "developer"] {
        let own = Prompt::Chat(vec![message(role, "own"), message("user", "hi")]);
        // The template does not know developers.
        assert_eq!(render(Some("Be kind."), own), "[system:own][user:hi]", "{role}");
    }
}

#[test]
fn prompts_are_strings_or_messages_in_json() {
    let chat = Prompt::Chat(vec![message("user", "hi")]);
    for (json, prompt) in
        [(r#""hi""#, Prompt::Text("hi".into())), (r#"[{"role":"user","content":"hi"}]"#, chat)]
    {
        assert_eq!(serde_json::from_str::<Prompt>(json).unwrap(), prompt);
        assert_eq!(serde_json::to_string(&prompt).unwrap(), json);
    }
    for bad in ["1", "null", r#"[{"role":"user"}]"#, r#"{"role":"user","content":"hi"}"#] {
        let error = serde_json::from_str::<Prompt>(bad).unwrap_err().to_string();
        assert!(error.contains("a string or a list"), "{error}");
    }
}
