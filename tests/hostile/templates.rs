//! Chat templates that are written to do harm.

use std::fs;
use std::path::Path;

use trimtab::text::{ChatTemplate, Message};

use crate::child::{given, measured, outcome};

/// Renders the template that the other tests name; nothing if none does.
#[test]
fn child() {
    let Some(path) = given() else { return };
    let source = fs::read_to_string(path).unwrap();
    let turn = [Message { role: "user".into(), content: "Hello".into() }];
    measured(|| ChatTemplate::new(&source, Path::new("x"), Vec::new()).render(&turn, None));
}

/// A text many times over, between a front and an end.
fn many(front: &str, text: &str, count: usize, end: &str) -> String {
    format!("{front}{}{end}", text.repeat(count))
}

/// Refused in bounded time and memory.
#[track_caller]
fn all_are_refused(cases: &[(&str, String)]) {
    let mut wrong = String::new();
    for (name, source) in cases {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), source).unwrap();
        let (said, is_fine) = outcome("templates::child", file.path());
        if !is_fine || !said.contains("refused: ") {
            let said: String = said.chars().take(600).collect();
            wrong += &format!("{name}: {said}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

const DEEP: usize = 100_000;

/// Goal: a template that is nested so deeply that a parser would overflow its stack is refused.
#[test]
fn deep_templates_are_refused() {
    let pair =
        |open: &str, close: &str| format!("{{{{ {}1{} }}}}", open.repeat(DEEP), close.repeat(DEEP));
    let blocks = |open: &str, close: &str| open.repeat(DEEP) + &close.repeat(DEEP);
    all_are_refused(&[
        ("parentheses", pair("(", ")")),
        ("lists", pair("[", "]")),
        ("dicts", pair("{1:", "}")),
        ("calls", pair("f(", ")")),
        ("subscripts", pair("a[", "]")),
        ("tuples", pair("(", ",)")),
        ("not", many("{{ ", "not ", DEEP, "1 }}")),
        ("minus", many("{{ ", "-", DEEP, "1 }}")),
        ("minus of a test", many("{{ 1 is eq ", "-", DEEP, "1 }}")),
        ("attributes", many("{{ a", ".b", DEEP, " }}")),
        ("items", many("{{ a", "[1]", DEEP, " }}")),
        ("calls in a row", many("{{ a", "()", DEEP, " }}")),
        ("filters", many("{{ 'a'", "|trim", DEEP, " }}")),
        ("filters with arguments", many("{{ 'a'", "|default(1)", DEEP, " }}")),
        ("a filter block", many("{% filter trim", "|trim", DEEP, " %}a{% endfilter %}")),
        ("filters of a set block", many("{% set a ", "|trim", DEEP, " %}a{% endset %}")),
        ("tests", many("{{ 1", " is defined", DEEP, " }}")),
        ("plus", many("{{ 1", "+1", DEEP, " }}")),
        ("times", many("{{ 1", "*1", DEEP, " }}")),
        ("power", many("{{ 1", "**1", DEEP, " }}")),
        ("modulo", many("{{ 1", "%1", DEEP, " }}")),
        ("and", many("{{ 1", " and 1", DEEP, " }}")),
        ("or", many("{{ 1", " or 1", DEEP, " }}")),
        ("less", many("{{ 1", " < 1", DEEP, " }}")),
        ("in", many("{{ 1", " in [1]", DEEP, " }}")),
        ("else", many("{{ 1", " if 0 else 1", DEEP, " }}")),
        ("if", blocks("{% if 1 %}", "{% endif %}")),
        ("elif", many("{% if 0 %}", "{% elif 0 %}", DEEP, "{% endif %}")),
        ("for", blocks("{% for a in [1] %}", "{% endfor %}")),
        ("with", blocks("{% with a=1 %}", "{% endwith %}")),
        ("set", blocks("{% set a %}", "{% endset %}")),
        ("filter", blocks("{% filter trim %}", "{% endfilter %}")),
        ("macro", blocks("{% macro a() %}", "{% endmacro %}")),
        ("generation", blocks("{% generation %}", "{% endgeneration %}")),
        ("100 levels of 1000 links", {
            let chain = "+1".repeat(1000);
            format!("{{{{ {}1{} }}}}", "(".repeat(100), format!("{chain})").repeat(100))
        }),
        (
            "levels of signs",
            format!("{{{{ {}1{} }}}}", "(- - - - - - - - - - ".repeat(150), ")".repeat(150)),
        ),
        ("a source of 64 MB", many("{{ '", "a", 64 << 20, "' }}{{ x.y.z() }}")),
    ]);
}

/// Goal: a template that calls itself, or makes values that contain themselves, does not overflow a stack.
#[test]
fn deep_values_are_refused() {
    let cycle = |rest: &str| format!("{{% set ns=namespace() %}}{{% set ns.a=ns %}}{rest}");
    let list_cycle = |rest: &str| {
        format!(
            "{{% set ns=namespace() %}}{{% set ns.a=[ns] %}}{{% set m=namespace() %}}\
             {{% set m.a=[m] %}}{rest}"
        )
    };
    let grown = |step: &str, rest: &str| {
        let again = "{% for i in range(99999) %}".repeat(2);
        let end = "{% endfor %}".repeat(2);
        format!("{{% set ns=namespace(a=[1],b=[1]) %}}{again}{step}{end}{rest}")
    };
    all_are_refused(&[
        ("itself", cycle("{{ ns }}")),
        ("itself as upper", cycle("{{ ns|upper }}")),
        ("itself as a key", cycle("{{ {ns: 1} }}")),
        ("itself sorted", cycle("{{ [ns, ns]|sort }}")),
        ("itself in a message", cycle("{{ [1].index(ns) }}")),
        ("itself in a list", list_cycle("{{ ns == m }}")),
        ("itself compared", list_cycle("{{ [ns, m]|unique|list }}")),
        ("itself encoded", list_cycle("{{ ns|urlencode }}")),
        ("itself hashed", list_cycle("{{ {(1, ns): 1} }}")),
        ("itself as json", list_cycle("{{ ns|tojson }}")),
        ("two in each other", "{% set a=namespace() %}{% set b=namespace(a=a) %}{% set a.b=b %}{{ a|lower }}".into()),
        ("by a macro", "{% set ns=namespace() %}{% macro f(x) %}{% set x.a=x %}{% endmacro %}{{ f(ns) }}{{ ns|lower }}".into()),
        ("ever deeper lists", grown("{% set ns.a=[ns.a] %}", "")),
        ("ever deeper dicts", grown("{% set ns.a={1:ns.a} %}", "")),
        ("ever deeper tuples", grown("{% set ns.a=(ns.a,) %}", "")),
        ("deeper by a hundred", grown(&format!("{{% set ns.a={}ns.a{} %}}", "[".repeat(90), "]".repeat(90)), "")),
        ("deeper by filters", grown("{% set ns.a=[ns.a]|batch(1)|list %}", "")),
        ("deeper by dict", grown("{% set ns.a=dict(a=ns.a) %}", "")),
        ("deeper by namespaces", grown("{% set ns.a=namespace(a=ns.a) %}", "")),
        ("deeper by sums", grown("{% set ns.a=[ns.a]+[1] %}", "")),
        ("deeper by slices", grown("{% set ns.a=[ns.a][0:] %}", "")),
        ("slices of slices", grown("{% set ns.a=ns.a[0:] %}", "")),
        ("sums of sums", grown("{% set ns.a=ns.a+[] %}", "")),
        ("times of times", grown("{% set ns.a=ns.a*1 %}", "")),
        ("deeper by cyclers", grown("{% set ns.a=cycler(ns.a) %}", "")),
        ("deeper by generators", grown("{% set ns.a=[ns.a]|map('list') %}", "")),
        ("deeper lists compared", grown("{% set ns.a=[ns.a] %}{% set ns.b=[ns.b] %}", "{{ ns.a == ns.b }}")),
        ("deeper by lines", format!("{{% set a=[1] %}}{}{{{{ a|upper }}}}", "{% set a=[[[[[[[[[[a]]]]]]]]]] %}".repeat(30_000))),
        ("deeper by lines with slices", format!("{{% set a=[1] %}}{}{{{{ a|upper|length }}}}{{{{ 1/0 }}}}", "{% set a=a[0:] %}".repeat(60_000))),
        ("a macro that calls itself", "{% macro f(x) %}{{ f([[[[[x]]]]]) }}{% endmacro %}{{ f(1) }}".into()),
        ("two macros", "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into()),
        ("a call block", "{% macro f(caller) %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{% call f() %}{% endcall %}".into()),
        ("a recursive loop", "{% set ns=namespace() %}{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".into()),
        ("a macro that calls itself twice", "{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}".into()),
        ("a cycle of no values", "{% for a in [1] %}{{ loop.cycle() }}{% endfor %}".into()),
        ("a loop in a namespace", "{% set ns=namespace() %}{% for a in [1, 2, ns] %}{% set l=loop %}{% set ns.a=l %}{% endfor %}{{ ns|upper }}".into()),
        ("a loop in itself", "{% for a in [1, 2] %}{% set l=loop %}{{ loop.changed(l) }}{{ [l]|upper }}{% endfor %}{{ 1/0 }}".into()),
    ]);
}

/// Goal: work and memory have an end, whatever multiplies them.
#[test]
fn growing_values_are_refused() {
    let doubled = |start: &str, step: &str, rest: &str| {
        format!(
            "{{% set ns=namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s={step} %}}\
             {{% endfor %}}{rest}"
        )
    };
    let loops = |inner: &str| {
        let again = "{% for a in range(99999) %}".repeat(3);
        format!("{again}{inner}{}", "{% endfor %}".repeat(3))
    };
    let big = |inner: &str| {
        format!(
            "{{% set big='abcdefgh'*1000000 %}}{{% set many=range(99999)|list %}}{}",
            loops(inner)
        )
    };
    all_are_refused(&[
        ("doubled lists", doubled("[1,2]", "ns.s + ns.s", "{{ ns.s|length }}")),
        ("doubled lists, written", doubled("[1,2]", "ns.s + ns.s", "{{ ns.s }}")),
        ("doubled lists, last", doubled("[1,2]", "ns.s + ns.s", "{{ ns.s[-1] }}{{ ns.s|last }}")),
        ("doubled lists, in", doubled("[1,2]", "ns.s + ns.s", "{{ 3 in ns.s }}")),
        ("doubled lists, index", doubled("[1,2]", "ns.s + ns.s", "{{ ns.s.index(3) }}")),
        ("doubled lists, compared", doubled("[1,2]", "ns.s + ns.s", "{{ ns.s == ns.s + [] }}")),
        ("repeated lists", doubled("[1,2]", "ns.s * 1000", "{{ ns.s|length }}")),
        ("nested twice", doubled("[1,2]", "[ns.s, ns.s]", "{{ ns.s|string|length }}")),
        ("nested twice, compared", "{% set ns=namespace(a=[1],b=[1]) %}{% for i in range(60) %}{% set ns.a=[ns.a,ns.a] %}{% set ns.b=[ns.b,ns.b] %}{% endfor %}{{ ns.a == ns.b }}".into()),
        ("nested by lines", format!("{{% set a=[1] %}}{{% set b=[1] %}}{}{{{{ a == b }}}}", "{% set a=[a,a] %}{% set b=[b,b] %}".repeat(60))),
        ("nested by lines, as a key", format!("{{% set a=[1] %}}{}{{{{ {{(a,): 1}} }}}}", "{% set a=[a,a] %}".repeat(60))),
        ("nested by lines, upper", format!("{{% set a=[1] %}}{}{{{{ a|upper }}}}", "{% set a=[a,a] %}".repeat(60))),
        ("nested by with", format!("{{% with a=[1] %}}{}{{{{ a|upper|length }}}}{}", "{% with a=[a,a] %}".repeat(60), "{% endwith %}".repeat(61))),
        ("nested by loops", format!("{{% set a=[1] %}}{}{{{{ a|upper|length }}}}{}", "{% for a in [[a,a]] %}".repeat(60), "{% endfor %}".repeat(60))),
        ("nested by a macro", "{% macro f(x, n) %}{% if n == 0 %}{{ x|upper|length }}{% else %}{{ f([x,x], n-1) }}{% endif %}{% endmacro %}{{ f([1], 40) }}".into()),
("nested in one line", "{{ ((((([1] * 100,) * 100,) * 100,) * 100,) * 100)|upper|length }}".into()),
        ("nested lists in one line", "{{ [[[[[1] * 100] * 100] * 100] * 100]|upper|length }}".into()),
        ("doubled strings", doubled("'ab'", "ns.s + ns.s", "{{ ns.s|length }}")),
        ("doubled by ~", doubled("'ab'", "ns.s ~ ns.s", "{{ ns.s|length }}")),
        ("doubled by join", doubled("'ab'", "[ns.s, ns.s]|join", "{{ ns.s|length }}")),
        ("doubled by replace", doubled("'ab'", "ns.s|replace('a', 'aa')|replace('b', 'bb')", "{{ ns.s|length }}")),
        ("doubled by .replace", doubled("'ab'", "ns.s.replace('a', 'aa').replace('b', 'bb')", "{{ ns.s|length }}")),
        ("doubled by format", doubled("'ab'", "'%s%s' % (ns.s, ns.s)", "{{ ns.s|length }}")),
        ("doubled by .format", doubled("'ab'", "'{}{}'.format(ns.s, ns.s)", "{{ ns.s|length }}")),
        ("doubled by escapes", doubled("'&&'", "ns.s|e|string", "{{ ns.s|length }}")),
        ("doubled dicts", doubled("{1:2}", "dict(a=ns.s, b=ns.s)", "{{ ns.s|string|length }}")),
        ("a range", "{{ range(10**12)|list|length }}".into()),
        ("a long range", "{% for a in range(10**18) %}{% endfor %}".into()),
        ("a long string", "{{ ('a' * 10**9)|length }}".into()),
        ("a long list", loops("{{ ([0] * 10**8)|list|length }}")),
        ("a lazy list in itself", loops("{{ ([0] * 10**8)|last }}")),
        ("a wide center", "{{ 'a'.center(10**9) }}".into()),
        ("a wide center filter", "{{ 'a'|center(10**9) }}{{ 1/0 }}".into()),
        ("wide and wide again", loops("{% set x='a'.ljust(16000000) %}")),
        ("zfill", loops("{% set x='a'.zfill(16000000) %}")),
        ("a wide number", "{{ '%1000000000d' % 1 }}".into()),
        ("a wide float", "{{ '%.1000000000f' % 1.5 }}".into()),
        ("a wide .format", "{{ '{:1000000000}'.format(1) }}".into()),
        ("a wide indent", "{{ [1]|tojson(indent=1000000000)|length }}{{ 1/0 }}".into()),
        ("a wide indent again", big("{{ [[[[[[[[[1]]]]]]]]]|tojson(indent='abcdefgh'*1000000)|length }}")),
        ("an indent filter", "{{ 'a\\nb'|indent(10**9)|length }}{{ 1/0 }}".into()),
        ("wide separators", "{{ range(9999)|list|tojson(separators=('a'*1000000, 'b')) }}".into()),
        ("a power", "{{ 10 ** 10 ** 9 }}".into()),
        ("a power of powers", "{{ 10 ** 10 ** 10 ** 10 }}".into()),
        ("sorted", big("{{ many|sort|length }}")),
        ("unique", big("{{ many|unique|list|length }}")),
        ("batch", big("{{ many|batch(1)|list|length }}")),
        ("wide batch", "{{ [1]|batch(10**9, 0)|list|length }}{{ 1/0 }}".into()),
        ("slice", "{{ [1]|slice(10**9)|list|length }}{{ 1/0 }}".into()),
        ("sliced", big("{{ many[::-1]|length }}{{ big[::-1]|length }}")),
        ("summed", big("{{ many|sum }}")),
        ("summed lists", "{% set many=range(99999)|batch(1)|list %}{{ many|sum(start=[])|length }}{{ 1/0 }}".into()),
        ("summed texts", "{% set many=['a'*1000]*9999 %}{{ many|sum(start='')|length }}{{ 1/0 }}".into()),
        ("grouped", big("{{ many|groupby('x') }}")),
        ("dictsort", big("{{ dict(many|batch(2))|dictsort }}")),
        ("joined", big("{{ many|join(big)|length }}")),
        ("joined long", big("{% set x=[big, big]|join %}")),
        ("split", big("{% set x=big.split('a') %}")),
        ("split lines", big("{% set x=big.splitlines() %}")),
        ("chars", big("{% set x=big|list %}")),
        ("counted", big("{% set x=big.count('a') %}")),
        ("found", big("{% set x=big.find('abcdefgha') %}")),
        ("compared", big("{% set x=(big == big[:-1] ~ 'x') %}")),
        ("compared line by line", {
            let lists = "{% set a=[[1]*200]*500 %}{% set b=[[1]*200]*500 %}";
            format!("{lists}{}", "{% if [a] == [b] and 0 %}{% endif %}".repeat(50_000))
        }),
        ("in a text", big("{% set x=('abcdefghx' in big) %}")),
        ("printed to nothing", big("{% set x='%.0s' % big %}")),
        ("percents", big("{% set x='%s' % many %}")),
        ("of many", big("{% set x=('%' * 8000000) % 1 %}")),
        ("a length of many", big("{% set x=many|map('string')|list|length %}")),
        ("index of many", big("{% set x=many.index(99998) %}")),
        ("a dict of many", big("{% set x=dict(many|batch(2)) %}")),
        ("copies of a dict", "{% set d=dict(range(99998)|batch(2)) %}".to_owned() + &loops("{% set x=dict(d, a=1) %}")),
        ("items of a dict", "{% set d=dict(range(99998)|batch(2)) %}".to_owned() + &loops("{% set x=d.items()|list %}{% set x=d.keys()|list %}")),
        ("json", big("{% set x=many|tojson %}")),
        ("json that is short", big("{% set x=[many|length, big|length]|tojson %}")),
        ("json sorted", "{% set d=dict(range(99998)|batch(2)) %}".to_owned() + &loops("{% set x=d|tojson(sort_keys=true) %}")),
        ("trimmed", big("{% set x=big|trim('abcdefgh') %}{% set x=big.strip('abcdefgh') %}")),
        ("titles", big("{% set x=big|title %}{% set x=big.title() %}{% set x=big.swapcase() %}")),
        ("numbers of text", "{% set n='1'*8000000 %}".to_owned() + &loops("{% set x=n|int(0) %}{% set x=n|float %}")),
        ("dates", loops("{% set x=strftime_now('%Y'*1000000) %}")),
        ("kept namespaces", "{% set ns=namespace(a=[]) %}".to_owned() + &loops("{% set ns.a=[namespace(a=1), ns.a] %}")),
        ("kept lists", "{% set ns=namespace(a=[]) %}".to_owned() + &loops("{% set ns.a=ns.a+[[[[1]]]] %}")),
        ("kept dicts", "{% set ns=namespace(a=[]) %}".to_owned() + &loops("{% set ns.a=ns.a+[{'a':1}] %}")),
        ("kept maps", "{% set x=range(99999)|map('list') %}{% set y=[{}]*10**7 %}{% set z=y|list %}{% set a=y|list %}{% set b=y|list %}{{ 1/0 }}".into()),
        ("many macros", loops("{% macro f() %}{% endmacro %}")),
        ("output", loops("{{ big }}abcdefgh")),
        ("captured output", loops("{% set x %}{{ 'a' * 1000000 }}{% endset %}")),
        ("a random choice", loops("{{ range(99999)|list|random }}")),
        ("words", big("{% set x=big|wordcount %}{% set x=big|wordwrap(1) %}{{ 1/0 }}")),
    ]);
}
