"""The device side: questions, prompts, bundles and engines. Imports none of its sister packages."""
