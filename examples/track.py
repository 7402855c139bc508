"""Objects followed through a video by ByteTrack, with the kept package trackers: pip install trackers av

python examples/track.py CHECKPOINT VIDEO OUTPUT.mp4
"""

import itertools
import sys

import supervision as sv
from trackers import ByteTrackTracker

import detector
from detector.inference.video import video_frames


def track(checkpoint: str, video: str, output: str) -> dict[int, str]:
    """Writes the video with the box and number of every object; returns the class of each number."""
    predictor, info = detector.load(checkpoint), sv.VideoInfo.from_video_path(video)
    tracker = ByteTrackTracker(frame_rate=info.fps, minimum_consecutive_frames=2)
    draw_boxes = sv.BoxAnnotator(color_lookup=sv.ColorLookup.TRACK)
    draw_labels = sv.LabelAnnotator(color_lookup=sv.ColorLookup.TRACK)
    seen: dict[int, str] = {}
    frames, again = itertools.tee(video_frames(video))
    with sv.VideoSink(output, info) as sink:
        for frame, found in zip(frames, predictor.stream(again)):
            tracked = tracker.update(found.to_supervision())  # low scores, too: they keep a track alive
            tracked = tracked[tracked.tracker_id >= 0]  # -1: not yet sure
            names = dict(zip(tracked.tracker_id.tolist(), tracked["class_name"].tolist()))
            picture = draw_boxes.annotate(frame.permute(1, 2, 0).numpy()[:, :, ::-1].copy(), tracked)  # BGR
            sink.write_frame(draw_labels.annotate(picture, tracked, [f"{name} {n}" for n, name in names.items()]))
            seen = names | seen  # ByteTrack does not look at classes: the first of a number stays
    return seen


if __name__ == "__main__":
    print(track(*sys.argv[1:4]))
