"""The texts that Jinja2, set up as transformers does it, makes of small templates.

The templates show what chat templates are made of and where engines differ: how values print, the
methods of strings, white space, scopes.
"""

from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

from golden.files import Json, write_json

# In front of each, on the same line.
PREFIX = (
    "{% set messages = [{'role': 'user', 'content': 'Hi <b>x</b> \\'y\\' \"z\" é 🎬\\n'}, "
    "{'role': 'assistant', 'content': ' ok '}] %}"
)


def write_jinja(out: Path) -> None:
    expressions = [one for line in EXPRESSIONS.split("\n") for one in line.split(" ;; ")]
    templates = [f"{{{{ {expression} }}}}" for expression in expressions]
    templates += STATEMENTS
    write_json(out / "jinja.json", [{"prefix": PREFIX}, *map(rendered, templates)])


def rendered(template: str) -> Json:
    text = _compile_jinja_template(PREFIX + template).render(
        messages=[],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    return {"template": template, "rendered": text}


# Several a line, between two semicolons.
EXPRESSIONS = r"""
1.0 ;; 1e5 ;; 1e-5 ;; 0.00001 ;; 1e16 ;; 1e15 ;; 123456789012345678.0 ;; 1e22 ;; 1/3 ;; 10/2
10//3 ;; -7//2 ;; -7%3 ;; 7%-3 ;; 7.5%2 ;; 2**10 ;; 2**-1 ;; 2**0.5 ;; 1e400 ;; -1e400
1e400-1e400 ;; 0.1+0.2 ;; 100.0*1 ;; 1.5e300 ;; 5e-324 ;; true ;; True ;; none ;; None
[1,2.0,'a',none,true] ;; {'a':1,'b':[1,'x']} ;; ('a',1) ;; ('a',) ;; () ;; [] ;; {}
'a' ~ 1 ~ 2.0 ~ none ~ true ;; 'x' * 3 ;; 3 * 'x' ;; [1] * 2 ;; 'abc'[1:] ;; 'abc'[::-1]
'abc'[-2:] ;; 'abcdef'[1:5:2] ;; [1,2,3][::-1] ;; [1,2,3][1:] ;; [1,2,3][-1] ;; [1,2,3][:-1]
[1,2,3][::2] ;; [1,2,3][-1:0:-1] ;; [1,2,3][5] ;; 'abc'[5] ;; 'abc'[0] ;; 'abc'[-1]
'a b c'.split() ;; ' a  b '.split() ;; ' a  b '.split(' ') ;; 'a,b,c'.split(',', 1)
'a,b,c'.split(',')[-1] ;; 'a,b,c'.rsplit(',', 1) ;; 'a b  c '.rsplit() ;; 'a b  c'.rsplit(none, 1)
'a b  c'.split(none, 1) ;; 'abc'.removeprefix('a') ;; 'abc'.removesuffix('c') ;; '42'.zfill(5)
'-42'.zfill(5) ;; '+4'.zfill(4) ;; 'a'.ljust(4) ;; 'a'.ljust(4, '*') ;; 'a'.rjust(4, '0')
'a'.center(4) ;; 'abc'.center(6,'-') ;; 'abc'.index('c') ;; 'abc'.rindex('c') ;; 'abc'.find('z')
'abc'.rfind('b') ;; 'abcabc'.count('bc') ;; [1,2,1].count(1) ;; [1,2,1].index(2)
('a','b').index('b') ;; 'a-b'.partition('-') ;; 'a-b-c'.rpartition('-')
'Hello World'.swapcase() ;; 'hello world'.title() ;; "they're bill's".title()
'hello World'.capitalize() ;; 'ABC'.lower() ;; 'abc'.upper() ;; 'ß'.upper() ;; 'abc'.isalpha()
'ab1'.isalnum() ;; '12'.isdigit() ;; '12'.isdecimal() ;; ' '.isspace()
'a\nb\r\nc\x0bd'.splitlines() ;; 'a\nb\n'.splitlines(true) ;; 'abc'.startswith('a')
'abc'.startswith(('x','a')) ;; 'abc'.startswith('b', 1) ;; 'abc'.endswith(('c',))
'{} and {}'.format(1, 'x') ;; '{0} {a}'.format(1, a='x')
'{:>5}|{:<5}|{:^5}'.format('a','b','c') ;; '%s and %d' % ('x', 3) ;; '%s' % 'x' ;; '%s' % 1.0
'%5.2f|%-5s|%05d|%x' % (3.14159, 'ab', 42, 255) ;; '%(a)s' % {'a': 1} ;; '%%' % () ;; '%r' % 'a'
'100%' ;; 'a%sb' % messages[0].role ;; '%s: ' % messages[0]['role'] ~ 'x' ;; '%s|%s' % (1, none)
'%s' % [1, 'a'] ;; '%s' % ('a',) ;; '%d' % 3.7 ;; '%i' % 3 ;; '%c' % 'a' ;; '%e' % 12345.678
'%g' % 0.0001 ;; 'abc'.replace('b', 'xx') ;; 'aaa'.replace('a', 'b', 2) ;; 'abc'.replace('', '-')
'abc'.strip('a') ;; '  x '.strip() ;; '\u00a0x\u2003'.strip() ;; '\x1cx\x1f'.strip()
'\u200bx'.strip() ;; 'xxabcxx'.strip('x') ;; 'xyabcyx'.lstrip('xy') ;; 'abcyx'.rstrip('xy')
','.join(['a','b']) ;; ', '.join(messages | map(attribute='role')) ;; 'abc' in 'xabcx'
'a' in ['a'] ;; 'role' in messages[0] ;; 'x' not in messages[0] ;; 1 in [1.0] ;; messages[0].role
messages[0]['role'] ;; messages[0].get('role') ;; messages[0].get('x')
messages[0].get('x', 'd') ;; messages[0].keys() | list ;; messages[0].values() | list
messages[0].items() | list ;; messages[0] | items | list ;; messages[0] ;; messages
messages[0].x ;; messages[0].x is defined ;; messages[0]['x'] is undefined ;; messages | length
messages | count ;; messages[-1].content | trim ;; messages[0].content | tojson
messages | tojson ;; messages | tojson(indent=2)
{'b':1,'a':[1,2.5,none,true,{}],'c':[]} | tojson
{'b':1,'a':[1,2.5,none,true,{}],'c':[]} | tojson(indent=2)
{'b':1,'a':[1,2.5,none,true,{}],'c':[]} | tojson(indent=0)
{'b':1,'a':[1,2.5,none,true,{}],'c':[]} | tojson(indent='--')
{'b':1,'a':[1,2.5]} | tojson(separators=(',',':'))
{'b':1,'a':[1,2.5]} | tojson(separators=(',',':'), indent=1)
{'b':1,'a':[1,2.5]} | tojson(sort_keys=true) ;; {'b':'é🎬\u2028\x7f\x00\t'} | tojson
{'b':'é🎬\u2028\x7f\x00\t'} | tojson(ensure_ascii=true)
{'b':'é🎬\u2028\x7f\x00\t'} | tojson(true) ;; {1:2,true:3,none:4,1.5:2} | tojson
[1e16,1e-5,1e400,-0.0,1.0] | tojson ;; (1,2) | tojson ;; 'x' | tojson ;; range(3) | list
range(1,10,3) | list ;; range(5,0,-2) | list ;; 'a' is string ;; 1 is number ;; 1.0 is integer
1 is integer ;; 1.0 is float ;; true is number ;; true is integer ;; true is boolean
1 is boolean ;; {} is mapping ;; [] is mapping ;; [] is sequence ;; 'a' is sequence
{} is sequence ;; 1 is sequence ;; [] is iterable ;; 'a' is iterable ;; {} is iterable
1 is iterable ;; none is iterable ;; range(3) is sequence ;; range(3) is iterable
messages[0].items() is iterable ;; () is sequence ;; none is none ;; missing is none
missing is defined ;; missing is undefined ;; missing is string ;; missing is mapping
missing is iterable ;; missing is sequence ;; missing == none ;; missing == missing ;; not missing
missing ~ 'x' ;; missing | length ;; missing | default('d') ;; missing | d('d')
'' | default('d') ;; '' | default('d', true) ;; none | default('d') ;; none | default('d', true)
missing or 'y' ;; missing and 'y' ;; 'x' or 'y' ;; '' or 'y' ;; [] or {} ;; 0 and 1 ;; 1 and 2
not 1 ;; not '' ;; not [] ;; 'a' if 1 else 'b' ;; 'a' if 0 ;; 'a' if 0 else none ;; 1 < 2 < 3
1 < 2 == true ;; 3 > 2 > 2 ;; 1 == 1.0 ;; 1 == true ;; '1' == 1 ;; 'a' < 'b' ;; [1,2] < [1,3]
[1,2] == [1,2] ;; (1,2) == [1,2] ;; 1 + 1.0 ;; 1 + true ;; true + true ;; 'a' + 'b' ;; [1] + [2]
(1,) + (2,) ;; -1 ;; - 1.0 ;; --1 ;; '3' | int ;; '3.7' | int ;; 'x' | int ;; 'x' | int(5)
'x' | int(default=5) ;; 3.9 | int ;; -3.9 | int ;; '0x1f' | int(base=16) ;; '1f' | int(0, 16)
none | int ;; true | int ;; '1e3' | int ;; ' 12 ' | int ;; '3.5' | float ;; 'x' | float
'x' | float(1.5) ;; 3 | float ;; 'inf' | float ;; 1.0 | string ;; 1 | string ;; none | string
true | string ;; [1,'a'] | string ;; messages | string ;; 3.14159 | round(2) ;; 3.5 | round
2.5 | round ;; -2.5 | round ;; 3 | round ;; 3.14159 | round(2, 'floor') ;; 3.11 | round(1, 'ceil')
3.7 | round | int ;; 12345 | round(-2) ;; [3,1,2] | sort ;; [3,1,2] | sort(reverse=true)
['b','A','c'] | sort ;; ['b','A','c'] | sort(case_sensitive=true)
messages | sort(attribute='role') | map(attribute='role') | list ;; [1,2,3] | sum ;; [1.0,2] | sum
[] | sum ;; messages | map(attribute='content') | map('length') | sum ;; [1,2,3] | min
[1,2,3] | max ;; ['b','A'] | min ;; [] | min ;; [1,2,3] | first ;; [1,2,3] | last ;; [] | first
'abc' | first ;; 'abc' | last ;; [1,2,3] | reverse | list ;; 'abc' | reverse ;; [1,2,3] | join
[1,2.0,none,true] | join(',') ;; [1,[2,'a']] | join(',') ;; messages | join(',', attribute='role')
'abc' | join('-') ;; 'abc' | list ;; {'a':1,'b':2} | list ;; {'b':1,'a':2} | dictsort
{'b':1,'a':2} | dictsort(by='value') ;; {'b':1,'a':2} | dictsort(reverse=true)
[1,1,2] | unique | list ;; ['a','A'] | unique | list ;; [1,2,3,4] | batch(2) | list
[1,2,3,4,5] | batch(2,'x') | list ;; [1,2,3,4,5] | slice(2) | list
messages | selectattr('role','equalto','user') | list
messages | selectattr('role','==','user') | list | length
messages | selectattr('role','eq','user') | map(attribute='content') | list
messages | selectattr('x','defined') | list ;; messages | selectattr('role') | list | length
messages | rejectattr('role','equalto','user') | map(attribute='role') | list
messages | rejectattr('role','in',['user','system']) | map(attribute='role') | list
messages | map(attribute='x', default='d') | list
messages | map(attribute='role') | map('upper') | list ;; messages | map('length') | list
[1,2,3,4] | select('odd') | list ;; [1,2,3,4] | select('divisibleby', 2) | list
[0,1,'',none] | select | list ;; [1,2,3] | reject('equalto', 2) | list
[1,2,3] | select('gt', 1) | list ;; ['a','b'] | map('replace','a','x') | list
[1,2] | map('string') | join ;; 'abc' | upper ;; 'ABC' | lower ;; 'hello world' | title
'hello world' | capitalize ;; '  x ' | trim ;; 'xxaxx' | trim('x') ;; 'abc' | replace('b','x')
'aaa' | replace('a','b',2) ;; 'abc' | length ;; 'é🎬' | length ;; 'a\nb' | indent
'a\nb' | indent(2) ;; 'a\nb' | indent(2, true) ;; 'a\n\nb' | indent(2)
'a\n\nb' | indent(2, blank=true) ;; 'a\nb' | indent(width=2, first=true) ;; 'a\nb' | indent('> ')
'<a>' | escape ;; '<a>' | e ;; '<a>' | safe ;; '<b>&' | escape | string
('<b>' | escape) ~ '<i>' ;; '%s-%s' | format('a', 'b') ;; '%s' | format(1.0) ;; 3 | abs
-3 | abs ;; {'a':1}.a ;; {'a':{'b':2}}.a.b ;; {'a':1}['a'] ;; {'keys':1}['keys'] ;; dict(a=1,b=2)
dict([('a',1)]) ;; dict() ;; namespace(a=1).a ;; cycler('a','b').next() ;; joiner(',')()
'a' 'b' ;; '\x41\u00e9\101\n\'\"\\' ;; "\d\q" ;; 1_000 ;; 0x1f ;; 0o17 ;; 0b11 ;; 1.5e3
(1,2)[0] ;; [[1,2],[3]] | sum(start=[]) ;; [[1,2],[3]] | map('first') | list ;; 'a' is in 'abc'
'a' is in ['a'] ;; 3 is divisibleby 3 ;; 3 is odd ;; 4 is even ;; 3 is eq 3 ;; 3 is ge 2
'abc' is lower ;; 'A' is upper ;; none is not none ;; 1 is not string ;; [] is not mapping
missing is not defined and true ;; messages[0].role == 'user' and messages[1].role == 'assistant'
messages | list | tojson ;; messages[0] | tojson(indent=4) ;; messages[0] | string
messages[0].content | string ;; [messages[0].content] ;; ['a\'b'] ;; ["a'b\"c"]
["a\n\t\\é\x00\x7f\u2028\u00a0🎬"] ;; ['it''s'] ;; {'a':'b'} | string ;; {1:2, 'a':none, 1.5:true}
[1.0, 1e16, 1e-7] ;; [missing] ;; [(1,), ()] ;; {'a': (1,2)} ;; messages.0.role
messages[0]["content"][:2] ;; messages[1:] | map(attribute='role') | list ;; messages[:1]
messages[1:] ;; messages[::-1] | map(attribute='role') | list ;; (messages | length) - 1
messages | length - 1 ;; messages|length > 1 ;; 1 if messages else 2 ;; messages and 1 ;; tools
tools is none ;; tools | tojson ;; not tools ;; tools == none ;; bos_token + 'x' ;; bos_token
bos_token is defined ;; unk_token ;; unk_token is defined ;; add_generation_prompt
add_generation_prompt is true ;; add_generation_prompt == true ;; 1 is true ;; true is true
'a' and 'b' or 'c' ;; 1 | default(2) + 1 ;; -1 | abs ;; 2 * 3 ** 2 ;; -2 ** 2 ;; 2 ** 3 ** 2
7 // 2 * 2 ;; 7 / 2 // 1 ;; 1 - 1 - 1 ;; 'a' ~ 'b' * 2 ;; '%s' % 1 + 2|string ;; 10 % 4 % 3
2 * 5 % 3 ;; 10 % 3 * 2 ;; 10 % 3 + 2 ;; 5 + 10 % 3 ;; (10 % 3) ;; [10 % 3, 7 % 2]
{'a': 10 % 3} ;; 10 % 3 == 1 ;; 10 % 3 is odd ;; 'x' if 10 % 3 else 'y' ;; messages|length % 2
10 % (2 + 1) ;; -10 % 3 ;; 10 % -3 ;; 10 % 3 ** 2 ;; 2 ** 3 % 3
'ab' if 'a' % () == 'a' else 'n' ;; 0.5 | round | int ;; 1e3 | int ;; 1.0 | int ;; 7 | float | int
'abc'|length|string + 'x' ;; [1,2]|length ~ '' ;; 'abc' is filter ;; 'abc' | upper | lower
'a,b' | replace(',', ';') | upper ;; 'abc'|list|join(',') ;; 'a'|string is string
[1,2,3]|tojson|length ;; (1 > 2) | string ;; (1, 2) | list ;; (1, 2) | join('-')
(1, 2) | length ;; [1,2,] ;; {'a':1,} ;; (1,2,) ;; 'a' if true else 'b' if true else 'c'
not 1 == 2 ;; not 'a' in 'abc' ;; 'a' not in 'abc' ;; not not 1 ;; 1 in [1,2] == true
'É'.lower() ;; 'İ'.lower() ;; 'ΑΣ'.lower() ;; 'ŉ'.upper() ;; 'x'.isupper()
messages[0].content.split('\n')[0] ;; messages[0].content.split('<b>')[-1].lstrip('x')
messages[0].content.strip().startswith('Hi')
messages[0]['content'].replace('x','y').upper().strip() ;; 'a'.join('bc')
'a'.join({'x':1,'y':2}) ;; '{:.2f}'.format(3.14159) ;; '{:03d}'.format(7)
'{:,}'.format(1234567) ;; '{a[0]}'.format(a=[1]) ;; '{{}}'.format(1) ;; '{}'.format(none)
'{}'.format(1.0) ;; '{}'.format([1.0,'a']) ;; '{}'.format(true) ;; [].copy() ;; {'a':1}.copy()
'a' > 'B' ;; 'a' >= 'a' ;; 1 != 1.0 ;; none == false ;; '' == none ;; [] == ()
{'a':1} == {'a':1.0} ;; 'x' is sameas 'x' ;; none is sameas none ;; true is sameas true
1 is sameas true ;; 'ab' | map('upper') | list ;; [{'a':{'b':1}}] | map(attribute='a.b') | list
[[1,2]] | map(attribute=0) | list ;; [{'a':1},{'a':2}] | sum(attribute='a')
[{'a':1},{'a':2}] | max(attribute='a') ;; [{'a':1},{'b':2}] | selectattr('a', 'undefined') | list
[{'a':none},{'a':2}] | selectattr('a', 'none') | list
[{'a':{'b':1}},{'a':{'b':2}}] | selectattr('a.b', 'eq', 2) | list ;; [1,2] | tojson | safe
1 | tojson ;; 1.0 | tojson ;; true | tojson ;; none | tojson ;; 'a' | upper() | lower()
messages | first | tojson ;; messages | last ;; (messages | last).role
messages | map('tojson') | join('\n') ;; 'abc' | batch(2) | list ;; 'a' * 0 ;; 'a' * -1 ;; [1] * 0
"a" ~ "b" == "ab" ;; 1 ~ 2 == '12' ;; 10 // 3 ~ '' ;; 3 | string ~ 'x' ;; 1.5 // 1 ;; 7.0 // 2
7 % 2.5 ;; -7.5 % 2 ;; 2 ** 100 ;; 99999999999999999999 + 1 ;; 9223372036854775807 + 1
1e2 == 100 ;; 100 | round(2) ;; 1.005 | round(2) ;; 1.25 | round(1) ;; 1e20 | int
1.5 | int | string ;; '12' | int + 1 ;; '1_000' | int ;; '1_0' | float ;; '-5' | int ;; '+5' | int
'5.' | float ;; 'nan' | float ;; '1e400' | float ;; '0b11' | int(base=2) ;; 'z' | int(0, 36)
[] | tojson ;; {} | tojson ;; [[]] | tojson(indent=2) ;; [{}] | tojson(indent=2)
'a"b\\c/d' | tojson ;; '\u2028' | tojson ;; "\u00e9" ~ 'é' ;; 'tab\there' ;; 'nul\0x'
'\v\f\a\b'
""".strip()

STATEMENTS = [
    "{% for m in messages %}{{ loop.cycle('a','b') }}{{ loop.changed(m.role) }}{% endfor %}",
    '{% for m in messages %}{{ loop.previtem }}{% endfor %}',
    '{% for m in [] %}x{% else %}none{% endfor %}',
    '{% for a, b in messages[0].items() %}{{ a }}={{ b }};{% endfor %}',
    '{% for a in messages[0] %}{{ a }};{% endfor %}',
    '{% for a, b in [(1,2),(3,4)] %}{{ a }}{{ b }}{% endfor %}',
    '{% for (a, b) in [(1,2),(3,4)] %}{{ a }}{{ b }}{% endfor %}',
    '{% for a, (b, c) in [(1,(2,3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}',
    '{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}',
    '{% for i in range(3) %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}',
    '{% for i in range(3) -%} {{ i }} {%- endfor %}', '{% for i in missing %}x{% endfor %}',
    "{% for c in 'abc' %}{{ c }}-{% endfor %}",
    '{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}',
    '{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}',
    '{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}',
    '{% for i in [1,2] %}{{ y }}{% set y = i %}{% endfor %}',
    '{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}',
    "{% set ns = namespace({'a':1}) %}{{ ns.a }}",
    "{% set ns = namespace(a=1) %}{{ ns['a'] }}{{ ns.a is defined }}{{ ns.c is defined }}",
    '{% set x %}a{{ 1 }}b{% endset %}{{ x }}{{ x|length }}',
    '{% set x | upper %}abc{% endset %}{{ x }}', '{% set a, b = 1, 2 %}{{ a }}{{ b }}',
    '{% set a = 1, 2 %}{{ a }}', '{% set (a, b) = (1, 2) %}{{ a }}{{ b }}',
    '{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}',
    '{% if 0 %}a{% elif 2 %}b{% else %}c{% endif %}',
    '{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}|{{ f(1)|upper }}',
    '{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(3) }}',
    '{% set x = 5 %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}',
    '{% macro f() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ f() }}',
    '{% macro f() %}{{ messages[0].role }}{% endmacro %}{{ f() }}',
    '{% macro f() %}{% set q = 1 %}{% endmacro %}{{ f() }}{{ q }}',
    "{% macro f(x) -%}\n  {{ x }}\n{%- endmacro %}[{{ f('a') }}]",
    "{% macro f(a='x' ~ 1) %}{{ a }}{% endmacro %}{{ f() }}",
    '{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}',
    '{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}', '{% raw %}{{ x }}{% endraw %}',
    '{% raw -%} {{ x }} {%- endraw %}', 'a{%- raw %} b {% endraw -%} c', '{# comment #}x',
    '  {# comment #}  \nx', 'a {#- comment -#} b', '  {# comment #}\nx', 'x {# a #}\ny',
    '{# {{ x }} {% if %} #}x', "{{ '{#' }}", "{{ '{%' }}{{ '%}' }}{{ '}}' }}", '{{ "{{" }}',
    "{{ '{{ x }}' }}", '  {% if true %}\n  a\n  {% endif %}\n  b',
    '  {%- if true %}\n  a\n  {%- endif %}\n  b', '  {% if true -%}\n  a\n  {% endif -%}\n  b',
    '  {%+ if true %}\n  a\n  {%+ endif %}\n  b', '  {% if true +%}\n  a\n  {% endif +%}\n  b',
    "  {{- 'x' -}}  \n y", "  {{ 'x' }}  \n y", "\n\n{{ 'x' }}\n\n", 'x\n', 'x\n\n', 'x\r\n',
    'x\r\n\r\n', 'x\r', 'a\r\nb\rc\n\rd', '{% if true %}\r\na\r\n{% endif %}\r\nb\r\n',
    '  {% if true %}\r\n  a\r\n  {% endif %}\r\n', "{{ 'a\r\nb' }}", "{{ 'a\\r\\nb' }}",
    "{{ 'a\\nb' }}\r\n{{ 1 }}", '{% raw %}a\r\nb\r{% endraw %}', '{# x\r\n #}\r\ny',
    '{%- set x -%}\r\n a \r\n{%- endset -%}{{ x }}', 'a\x0b{% if true %}\x0bb{% endif %}',
    'a\u2028b\x85c', '\t{% if true %}\t\n\ta\t{% endif %}\t\n', 'a {% if true %} b {% endif %} c',
    'a\n  {% if true %}b{% endif %}  \n c', 'a\n  {{ 1 }}\n  {% if true %}\n{% endif %}c',
    '\xa0{% if true %}\nx{% endif %}', '\u3000\n{%- if true %}\nx{% endif -%}\u2003y',
    '\x0c {%- if true -%}\x0bx{% endif -%} \x0cy', '{{ 1 }}\n{{ 2 }}\n', '{{ 1 -}}\n{{ 2 }}\n',
    '{{ messages[0].content }}', '{{- messages[0].content -}}',
    '{% generation %}a{% endgeneration %}b',
    '{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}',
    'a\n  {% generation %}\n  b\n  {% endgeneration %}\n  c',
    'a\n  {%- generation %}\n  b\n  {%- endgeneration %}\n  c',
    'a\n  {% generation -%}\n  b\n  {% endgeneration -%}\n  c',
    'a\n  {%+ generation %}\n  b\n  {%+ endgeneration +%}\n  c',
    'a {%generation%} b {%endgeneration%} c',
    '{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}',
    '{% set x = 0 %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}',
    "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}{# {% generation %} #}",
    '{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}',
    '{% for i in [1,2] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}',
    '{% set ns = namespace(x=0) %}{% generation %}{% set ns.x = 1 %}{% endgeneration %}{{ ns.x }}',
    '{% generation %}{% macro f() %}m{% endmacro %}{{ f() }}{% endgeneration %}{{ f is defined }}',
    'x #}', 'x }} y %} z', '{', '{ {', '{}', 'a{b}c', "{{ {'a':{'b':1}}['a']['b'] }}",
    "{{{'a':1}}}", "{{ {'a':1}}}", "{{ {'a':{'b':1}}}}", "{% set x = {'a':1} %}{{ x.a }}",
    '{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role }}{% endfor %}',
    '{% for m in messages|reverse %}{{ m.role }}{{ loop.last }}{% endfor %}',
    "{{ (messages|map(attribute='role')|list)|length }}",
    "{% set x = messages|map(attribute='role') %}{{ x|list }}{{ x|list }}",
    "{% if messages|selectattr('role','eq','tool') %}yes{% else %}no{% endif %}",
    "{% if messages|map(attribute='role') %}yes{% endif %}",
    '{% if [] | reverse %}yes{% else %}no{% endif %}',
    '{% if range(0) %}yes{% else %}no{% endif %}', '{% if {}.items() %}yes{% else %}no{% endif %}',
    '{% if messages[5:] %}yes{% else %}no{% endif %}',
    '{{ messages[1:] is iterable }}{{ messages[0].items() is iterable }}',
    '{{ (messages|list)[0].role }}{{ (messages[1:]|first).role }}{{ messages[1:]|length }}',
    "{{ messages[0].role in ['user'] }}{{ messages[0] in messages }}{{ 'x' in {} }}",
    "{{ messages[1:] + [{'role':'x'}] }}", "{{ '%s' % (messages|length) }}",
    "{{ 'a' if messages|length % 2 == 1 else 'b' }}", '{% if loop is defined %}x{% endif %}',
    '{%- if not loop is defined -%} y {%- endif -%}',
    "{{ ''.join(messages|map(attribute='role')) }}", "{{ '\\n'.join(['a','b']) }}",
    "{{ 'x' | indent(4, first=True) }}",
    "{{ messages[0]['content'] | replace('\\n', ' ') | trim }}",
    "{% set s = 'a' %}{% set s = s ~ 'b' %}{{ s }}",
    "{% if 'a' in 'abc' and not ('d' in 'abc') %}ok{% endif %}",
    '{{ None }}{{ True }}{{ False }}{{ none is none }}',
    "{% set x = None %}{{ x }}{{ x is none }}{{ x or 'd' }}",
    "{% set x = true %}{{ x }}{{ x|string }}{{ x ~ '' }}",
    "{% for k, v in {'a':1,'b':2}|dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for k, v in {'a':1,'b':2}|items %}{{ k }}{{ v }}{% endfor %}",
    "{% for k in {'a':1,'b':2}.keys()|list %}{{ k }}{% endfor %}", "{{ {'a':1,'a':2} }}",
    "{{ {'b':1}|length }}", '{{ dict(**messages[0]) }}', "{{ messages[0]['role'].upper() }}",
    '{{ (messages[0].role)[0] }}', '{{ messages[0].role.0 }}',
    '{{ messages[-1:][0].role }}{{ messages[10:] }}', '{{ [[1,2],[3,4]][1][0] }}',
    "{{ 'abc'[10:] }}{{ 'abc'[:-10] }}{{ [1][3:1] }}", '{{ range(10)[2:5]|list }}',
    '{{ range(10)[-1] }}', "{{ 1.0 ~ 'a' }}{{ 1e-5 ~ 'a' }}{{ [1e-5] ~ 'a' }}",
    "{{ [1e-5]|join }}{{ 1e-5|string }}{{ '%s' % 1e-5 }}{{ '{}'.format(1e-5) }}",
    '{% for i in [0.1] %}{{ i }}{% endfor %}',
    '{{ 0.1 * 3 }}{{ 1e3 }}{{ 100000000000000000000.0 }}',
    '{{ 3|float }}{{ 7 / 2 }}{{ 6 / 2 }}{{ 2 ** 0.5 }}',
    '{% set n = 5 %}{{ n / 1 }}{{ (n / 2)|int }}{{ (n / 2)|round|int }}',
    '{{ messages|tojson|length }}', "{{ [1, 'a', none] | map('string') | list }}",
    "{{ 'a' ~ none ~ missing ~ true ~ [1] }}", "{{ 'a' + 'b' ~ 'c' + 'd' }}",
    "{{ 'x' if true }}{{ 'x' if false }}", "{{ ('x' if false) is defined }}",
    "{% set x = 'a' if false %}{{ x is defined }}", '{{ missing|upper }}',
    '{{ missing|trim }}[{{ missing|join }}]', '{{ none|trim }}', '{{ none|upper }}',
    '{{ 5|trim }}', '{{ [1]|trim }}', '{{ none.x }}', '{{ 5 .x }}', '{{ messages.x }}',
    '{{ messages.role }}', '{{ messages[10] }}', "{{ messages['x'] }}",
    "{% if false %}{{ 'a'|nosuch }}{% endif %}", '{{ none in [none] }}',
    "{{ messages|tojson + 'x' }}{{ '<' + ([1]|tojson) }}{{ ('<'|tojson) ~ '<' }}",
    '{{ \'x\'|tojson == \'"x"\' }}{{ \'x\'|tojson|replace(\'"\', \'\') }}',
    '{% set x = messages|tojson %}{{ x|length }}{{ x[0] }}{{ x is string }}',
    '{% for x in [1,2,3] %}{% if not loop.first %}, {% endif %}{{ x }}{% endfor %}',
    '{%set x=1%}{{x}}{%if x%}a{%endif%}', '{%-set x=1-%}{{-x-}}', '{{ 1if true else 2 }}',
    "{{ 'a'if true else'b' }}", '{{ not(true) }}', '{{ (not true) or true }}',
    '{% if(true) %}a{% endif %}', '{% if not(false) %}a{% endif %}',
    '{% for(a)in[1] %}{{a}}{% endfor %}',
    '{% if tools is not none and tools %}a{% else %}b{% endif %}',
    '{% if tools %}a{% endif %}{{ tools|length if tools else 0 }}',
    '{%- if enable_thinking is defined and enable_thinking is false %}a{% endif %}x',
    '{{ add_generation_prompt is defined and add_generation_prompt }}',
    '{{ documents }}{{ tools }}', '{{ bos_token }}{{ eos_token }}', '{{ bos_token ~ eos_token }}',
    '{# a #}\n{# b #}\nx',
    "{{ messages[0]['content'] | trim | length }}{{ messages[1].content.strip() }}",
    '{{ "it\'s" }}{{ \'say "hi"\' }}{{ \'it\\\'s\' }}', "{{ 'multi\nline' }}",
    "{{ 'a' 'b' ~ 'c' 'd' }}",
    "{% set t = '%d' %}{{ t % 5 }}{{ (t ~ '-%s') % (5, 'x') }}{{ t*2 % (1,2) }}",
    "{{ f(1 % 2, a=3 % 2)|x if false else {'k': 5 % 3}['k'] }}",
    "{{ [1,2,3][4 % 3:] }}{{ 'abcdef'[5 % 3:7 % 4] }}", "{{ '%s' % missing }}",
    "{{ '%s' % none }}", "{{ '%s' % {} }}", "{{ 'a' % {} }}", "{{ 'a' % [] }}",
    "{{ '%*d' % (5, 3) }}", "{{ '%.3s|' % 'abcdef' }}", "{{ '%+d % d' % (1, 2) }}",
    "{{ '%#x %o %X %E %G' % (255, 8, 255, 1.5, 1e10) }}", "{{ '%s' % true }}", "{{ '%d' % true }}",
    "{{ '%f' % 1 }}", '{{ \'%r %r\' % (1.0, \'a"\') }}', "{{ '%a' % '\xe9' }}",
    "{{ '%5s|%-5s|%05s' % ('\xe9','\xe9','\xe9') }}", "{{ '%ld' % 3 }}", "{{ '%i%%' % 3 }}",
    "{{ '%c%c' % (65, 'x') }}",
    ('{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ lo'
     'op.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{'
     '{ loop.depth0 }}{% endfor %}'),
    ('{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}-{{ l'
     'oop.nextitem.role if loop.nextitem is defined }},{% endfor %}'),
    ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.role }}{% else %"
     '}none{% endfor %}'),
    ("{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + "
     'i %}{% endfor %}{{ ns.a }}'),
    ("{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1,"
     " c='z') }}{{ f(b=3, a=2) }}"),
    ('{% for m in messages %}{% macro f(x) %}{{ x }}{{ m.role }}{% endmacro %}{{ f(1) '
     '}}{% endfor %}'),
    ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{%"
     " set s = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{%"
     " set s = false %}{% endif %}{% for m in loop_messages %}{% if (m['role'] == 'use"
     "r') != (loop.index0 % 2 == 0) %}{{ raise_exception('x') }}{% endif %}{{ m.role }"
     '}{% endfor %}{{ s }}'),
    ('{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }};{% '
     'endfor %}{{ loop.index }}{% endfor %}'),
    ('{% for i in range(2) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.ind'
     'ex }}{% endfor %}{% endfor %}'),
    ("{% set x = messages|selectattr('role','eq','user') %}{% for i in x %}{{ i.role }"
     '}{% endfor %}{{ x|list|length }}'),
    ('{{ messages[1:] == [messages[1]] }}{{ [1]+[2] == [1,2] }}{{ range(2)|list == [0,'
     '1] }}{{ (1,) == (1,) }}{{ [1][:] == [1] }}'),
    ('{{ messages[1:][0].role }}{{ (messages[1:] + messages[:1])[1].role }}{{ messages'
     '[1:][-1].role }}{{ messages[::-1][0].role }}'),
    ('{% set content = messages[0].content %}{% if content is string %}s{% elif conten'
     't is mapping %}m{% elif content is iterable %}i{% endif %}'),
    ("{% set content = [{'type':'text','text':'a'}] %}{% for c in content %}{% if c.ty"
     "pe == 'text' %}{{ c.text }}{% endif %}{% if c['type'] == 'image' or 'image' in c"
     ' %}I{% endif %}{% endfor %}'),
    ("{{ missing == '' }}{{ missing == none }}{{ missing != 'a' }}{{ missing in ['a'] "
     "}}{{ 'a' in missing }}"),
    ('{% if x is not defined %}a{% endif %}{% if not x is defined %}a{% endif %}{% if '
     'x is defined and x %}b{% endif %}'),
    ("{%- for message in messages %}\n    {%- if message.role == 'user' %}\n        {{- "
     "'<u>' + message.content }}\n    {%- else %}\n        {{- '<a>' + message.content }"
     "}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<a>' }"
     '}\n{%- endif %}'),
    ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' "
     "+ message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{"
     " '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.la"
     "st and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"),
    ("{{ 'a\\tb' }}{{ 'a\\\\nb' }}{{ 'a\\x41' }}{{ '\\u4f60' }}{{ '\\U0001f3ac' }}{{ '\\0' }}"
     "{{ '\\12' }}{{ '\\q' }}{{ '\\{' }}{{ '\\/' }}"),
    ("{{ '%s %s' % ('a', 'b') ~ 'c' }}{{ 'x' ~ '%s' % 'a' }}{{ '%s' % 'a' 'b' }}{{ '%s"
     "' % 'a'|upper }}{{ ('%s' % 'a')|upper }}"),
    ("{% if '%s' % 'a' == 'a' %}y{% endif %}{% for x in '%s' % 'ab' %}{{ x }}.{% endfo"
     "r %}{% set q = '%s' % 1 %}{{ q }}"),
    ('{{ 10 % 3 }}{{ -10 % 3 }}{{ 10 % -3 }}{{ 10.5 % 3 }}{{ 10 % 3.5 }}{{ -7.5 % 2 }}'
     '{{ true % 2 }}{{ 5 % true }}{{ 10 % 4 % 3 }}{{ 2 * 7 % 4 }}{{ 7 % 4 * 2 }}{{ 7 %'
     ' 4 ** 2 }}{{ 1 + 7 % 4 }}{{ 7 % 4 + 1 }}{{ 7 // 2 % 2 }}{{ 7 % 4 // 2 }}'),
]
