"""One public function per scene, without arguments; test_scenes.py runs each in a process of its own (apart.py)."""
