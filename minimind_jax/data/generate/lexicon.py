"""The words that the families are about: the same entries, in the same order, in Chinese and English."""

from __future__ import annotations

from typing import NamedTuple

from minimind_jax.data.generate.item import Language


class Word(NamedTuple):
    """One meaning in both languages."""

    zh: str
    en: str

    def of(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


class Thing(NamedTuple):
    """A countable thing. `measures` are its Chinese measure words, the usual one first; an attribute on which people
    could differ (the colour of an apple) is None, for another thing's value must be plainly wrong."""

    zh: str
    en: str
    plural: str
    measures: str
    category: Word | None = None
    colour: Word | None = None
    use: Word | None = None

    def of(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en

    @property
    def a(self) -> str:
        return f"an {self.en}" if self.en[0] in "aeiou" else f"a {self.en}"


RED, BLUE, GREEN = Word("红色", "red"), Word("蓝色", "blue"), Word("绿色", "green")
YELLOW, WHITE, BLACK = Word("黄色", "yellow"), Word("白色", "white"), Word("黑色", "black")
BROWN, PURPLE, PINK = Word("棕色", "brown"), Word("紫色", "purple"), Word("粉色", "pink")
GREY, ORANGE = Word("灰色", "grey"), Word("橙色", "orange")
COLOURS = (RED, BLUE, GREEN, YELLOW, WHITE, BLACK, BROWN, PURPLE, PINK, GREY)

FRUIT, VEGETABLE, ANIMAL = Word("水果", "fruit"), Word("蔬菜", "vegetable"), Word("动物", "animal")
TOOL, FURNITURE, VEHICLE = Word("工具", "tool"), Word("家具", "furniture"), Word("交通工具", "vehicle")
CLOTHING, INSTRUMENT = Word("衣物", "clothing"), Word("乐器", "instrument")
UNCOUNTABLE = (FURNITURE, CLOTHING)

THINGS = (
    Thing("苹果", "apple", "apples", "个颗", FRUIT),
    Thing("香蕉", "banana", "bananas", "根个", FRUIT, YELLOW),
    Thing("葡萄", "grape", "grapes", "颗串", FRUIT),
    Thing("柠檬", "lemon", "lemons", "个颗", FRUIT, YELLOW),
    Thing("草莓", "strawberry", "strawberries", "颗个", FRUIT, RED),
    Thing("桃子", "peach", "peaches", "个颗", FRUIT),
    Thing("樱桃", "cherry", "cherries", "颗个", FRUIT, RED),
    Thing("胡萝卜", "carrot", "carrots", "根个", VEGETABLE, ORANGE),
    Thing("黄瓜", "cucumber", "cucumbers", "根条个", VEGETABLE, GREEN),
    Thing("茄子", "eggplant", "eggplants", "个根", VEGETABLE, PURPLE),
    Thing("洋葱", "onion", "onions", "个颗", VEGETABLE),
    Thing("狗", "dog", "dogs", "只条", ANIMAL),
    Thing("猫", "cat", "cats", "只", ANIMAL),
    Thing("马", "horse", "horses", "匹", ANIMAL),
    Thing("牛", "cow", "cows", "头只条", ANIMAL),
    Thing("羊", "sheep", "sheep", "只头", ANIMAL, WHITE),
    Thing("青蛙", "frog", "frogs", "只", ANIMAL, GREEN),
    Thing("乌鸦", "crow", "crows", "只", ANIMAL, BLACK),
    Thing("天鹅", "swan", "swans", "只", ANIMAL, WHITE),
    Thing("大象", "elephant", "elephants", "头只", ANIMAL, GREY),
    Thing("老鼠", "mouse", "mice", "只", ANIMAL),
    Thing("兔子", "rabbit", "rabbits", "只", ANIMAL),
    Thing("狼", "wolf", "wolves", "只匹头", ANIMAL, GREY),
    Thing("锤子", "hammer", "hammers", "把", TOOL, None, Word("钉钉子", "driving in nails")),
    Thing("斧头", "axe", "axes", "把", TOOL, None, Word("砍柴", "chopping wood")),
    Thing("铲子", "spade", "spades", "把", TOOL, None, Word("挖土", "digging")),
    Thing("扫帚", "broom", "brooms", "把", TOOL, None, Word("扫地", "sweeping the floor")),
    Thing("床", "bed", "beds", "张", FURNITURE, None, Word("睡觉", "sleeping")),
    Thing("椅子", "chair", "chairs", "把张", FURNITURE, None, Word("坐", "sitting")),
    Thing("书架", "bookshelf", "bookshelves", "个", FURNITURE, None, Word("放书", "holding books")),
    Thing("沙发", "sofa", "sofas", "张个", FURNITURE),
    Thing("公共汽车", "bus", "buses", "辆", VEHICLE, None, Word("载客", "carrying passengers")),
    Thing("卡车", "truck", "trucks", "辆", VEHICLE, None, Word("运货", "carrying goods")),
    Thing("自行车", "bicycle", "bicycles", "辆", VEHICLE),
    Thing("飞机", "plane", "planes", "架", VEHICLE),
    Thing("船", "ship", "ships", "艘条只", VEHICLE),
    Thing("大衣", "coat", "coats", "件", CLOTHING, None, Word("保暖", "keeping warm")),
    Thing("衬衫", "shirt", "shirts", "件", CLOTHING),
    Thing("裙子", "skirt", "skirts", "条件", CLOTHING),
    Thing("袜子", "sock", "socks", "只双", CLOTHING),
    Thing("钢琴", "piano", "pianos", "架", INSTRUMENT),
    Thing("小提琴", "violin", "violins", "把", INSTRUMENT),
    Thing("吉他", "guitar", "guitars", "把", INSTRUMENT),
    Thing("铅笔", "pencil", "pencils", "支根"),
    Thing("钢笔", "pen", "pens", "支根", None, None, Word("写字", "writing")),
    Thing("尺子", "ruler", "rulers", "把", None, None, Word("量长度", "measuring length")),
    Thing("雨伞", "umbrella", "umbrellas", "把", None, None, Word("挡雨", "keeping off the rain")),
    Thing("杯子", "cup", "cups", "个只", None, None, Word("喝水", "drinking water")),
    Thing("时钟", "clock", "clocks", "个座", None, None, Word("看时间", "telling the time")),
    Thing("台灯", "lamp", "lamps", "盏台", None, None, Word("照明", "giving light")),
    Thing("钥匙", "key", "keys", "把", None, None, Word("开锁", "opening locks")),
    Thing("书", "book", "books", "本"),
    Thing("照相机", "camera", "cameras", "台架", None, None, Word("拍照", "taking photos")),
    Thing("盒子", "box", "boxes", "个只"),
)

OPPOSITES = (
    (Word("大", "big"), Word("小", "small")),
    (Word("长", "long"), Word("短", "short")),
    (Word("热", "hot"), Word("冷", "cold")),
    (Word("快", "fast"), Word("慢", "slow")),
    (Word("高", "high"), Word("低", "low")),
    (Word("新", "new"), Word("旧", "old")),
    (Word("好", "good"), Word("坏", "bad")),
    (Word("重", "heavy"), Word("轻", "light")),
    (Word("明亮", "bright"), Word("昏暗", "dim")),
    (Word("上", "up"), Word("下", "down")),
    (Word("左", "left"), Word("右", "right")),
    (Word("真", "true"), Word("假", "false")),
    (Word("早", "early"), Word("晚", "late")),
    (Word("近", "near"), Word("远", "far")),
    (Word("湿", "wet"), Word("干", "dry")),
    (Word("满", "full"), Word("空", "empty")),
    (Word("快乐", "happy"), Word("悲伤", "sad")),
    (Word("强", "strong"), Word("弱", "weak")),
    (Word("厚", "thick"), Word("薄", "thin")),
    (Word("宽", "wide"), Word("窄", "narrow")),
    (Word("深", "deep"), Word("浅", "shallow")),
    (Word("硬", "hard"), Word("软", "soft")),
    (Word("干净", "clean"), Word("肮脏", "dirty")),
    (Word("富", "rich"), Word("穷", "poor")),
    (Word("白天", "day"), Word("黑夜", "night")),
    (Word("里面", "inside"), Word("外面", "outside")),
    (Word("多", "many"), Word("少", "few")),
    (Word("买", "buy"), Word("卖", "sell")),
    (Word("推", "push"), Word("拉", "pull")),
    (Word("赢", "win"), Word("输", "lose")),
)

# The first half are men and boys, the second half women and girls, so that pronouns agree.
NAMES = (
    Word("小明", "Tom"),
    Word("小刚", "Ben"),
    Word("大伟", "Jack"),
    Word("小龙", "Sam"),
    Word("志强", "Peter"),
    Word("小军", "Leo"),
    Word("小红", "Anna"),
    Word("小丽", "Lucy"),
    Word("小芳", "Mary"),
    Word("小雨", "Kate"),
    Word("小梅", "Emma"),
    Word("小雪", "Rose"),
)

PLACES = (
    Word("公园", "park"),
    Word("学校", "school"),
    Word("花园", "garden"),
    Word("车站", "station"),
    Word("图书馆", "library"),
    Word("商店", "shop"),
    Word("树林", "forest"),
    Word("草地", "meadow"),
    Word("博物馆", "museum"),
    Word("动物园", "zoo"),
)
OUTDOORS = (
    Word("公园", "park"),
    Word("花园", "garden"),
    Word("树林", "forest"),
    Word("草地", "meadow"),
    Word("山谷", "valley"),
)
SHOPS = (Word("商店", "shop"), Word("市场", "market"), Word("超市", "supermarket"), Word("商场", "mall"))

# Small things that one can find, lose, buy or give away, in any colour.
OBJECTS = (
    Thing("球", "ball", "balls", "个"),
    Thing("帽子", "hat", "hats", "顶"),
    Thing("杯子", "cup", "cups", "个"),
    Thing("风筝", "kite", "kites", "只"),
    Thing("盒子", "box", "boxes", "个"),
    Thing("书包", "bag", "bags", "个"),
    Thing("围巾", "scarf", "scarves", "条"),
    Thing("雨伞", "umbrella", "umbrellas", "把"),
    Thing("钢笔", "pen", "pens", "支"),
    Thing("气球", "balloon", "balloons", "个"),
)

PETS = (Word("狗", "dog"), Word("猫", "cat"), Word("兔子", "rabbit"), Word("鹦鹉", "parrot"), Word("鸭子", "duck"))
FOODS = (
    Word("汤", "soup"),
    Word("米饭", "rice"),
    Word("面条", "noodles"),
    Word("鱼", "fish"),
    Word("鸡蛋", "eggs"),
    Word("豆子", "beans"),
    Word("土豆", "potatoes"),
    Word("蘑菇", "mushrooms"),
)

EVENTS = (
    Word("足球比赛", "football match"),
    Word("钢琴课", "piano lesson"),
    Word("生日聚会", "birthday party"),
    Word("数学考试", "maths test"),
    Word("音乐会", "concert"),
    Word("家长会", "parents' meeting"),
    Word("春游", "spring trip"),
    Word("运动会", "sports day"),
    Word("婚礼", "wedding"),
    Word("画展", "painting show"),
    Word("游泳课", "swimming lesson"),
    Word("电影节", "film festival"),
    Word("书市", "book fair"),
    Word("合唱比赛", "singing contest"),
    Word("花展", "flower show"),
    Word("象棋比赛", "chess match"),
)

WEEKDAYS = (
    Word("星期一", "Monday"),
    Word("星期二", "Tuesday"),
    Word("星期三", "Wednesday"),
    Word("星期四", "Thursday"),
    Word("星期五", "Friday"),
    Word("星期六", "Saturday"),
    Word("星期日", "Sunday"),
)
MONTHS = (
    Word("1月", "January"),
    Word("2月", "February"),
    Word("3月", "March"),
    Word("4月", "April"),
    Word("5月", "May"),
    Word("6月", "June"),
    Word("7月", "July"),
    Word("8月", "August"),
    Word("9月", "September"),
    Word("10月", "October"),
    Word("11月", "November"),
    Word("12月", "December"),
)
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

# Number words 0-9 as they stand before a Chinese measure word ("两只猫") and before an English noun.
COUNTS = tuple(
    Word(zh, en)
    for zh, en in zip(
        "零一两三四五六七八九",
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        strict=True,
    )
)
