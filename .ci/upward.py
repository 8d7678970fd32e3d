"""Nothing in lowhaio.py calls upward: no name is used in a region above the one that defines it"""
import ast
import sys

with open('lowhaio.py', encoding='utf-8') as file:
    source = file.read()
headings = [number for number, line in enumerate(source.splitlines(), 1) if line.startswith('# --------')]
tree = ast.parse(source)
region_of = {}
for node in tree.body:
    names = [node.name] if hasattr(node, 'name') else [
        each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
    region_of.update((name, sum(heading <= node.lineno for heading in headings)) for name in names)
upward = [f'line {each.lineno} uses {each.id}' for each in ast.walk(tree) if isinstance(each, ast.Name)
          and region_of.get(each.id, 0) > sum(heading <= each.lineno for heading in headings)]
sys.exit('\n'.join(upward) or 0)
