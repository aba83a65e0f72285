"""How fast, and in how much memory: one command a question, `python -m benchmarks.speed.NAME [--tiny] [--device D]`.

    teacher     the full-size network beside DOVE-shaped and OSEDiff-shaped teachers
    modules     the full-size network beside the same built of diffusers' modules
    peers       the bundled networks beside Real-ESRGAN's and RealSR's
    scaling     time and memory over the size of frames, the length of a clip, the chunk
    job         30 frames to 2048x2048
    files       a video from file to file, and where its time goes
    training    a step of every recipe's stages
    skips       the finest skips stored against recomputed
    fused       what stands between convolutions, operation by operation against fused

Each runs whatever it compares in turns within one process and writes `NAME.json` (machine, settings, figures, ratios)
and, where there is something to draw, `NAME.png`. `--tiny` tries the command itself on any machine: its figures mean
nothing.
"""
